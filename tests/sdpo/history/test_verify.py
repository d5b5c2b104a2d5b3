"""A look at a run finds every fault, names it, and says what to do."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, Outcome
from histories import contents, flip, origin, replayed

from sdpo.errors import UserError
from sdpo.history.faults import Findings
from sdpo.history.verify import verify_run
from sdpo.store.logp_cache import LogpCache
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import checksum_path
from sdpo.system.ownership import MARKER


def named(findings: Findings) -> str:
    return " | ".join(f"{fault.file} {fault.what}" for fault in findings.faults)


def rewrite(run: RunFolder, node: str, **changes: object) -> None:
    """A record with other content, and a digest to match."""
    record = run.read_record(node)
    assert record is not None
    run.publish_record(node, record | changes)


def test_a_finished_run_is_whole_and_is_only_read(finished_copy: Bench) -> None:
    before = contents(finished_copy.folder)
    seen: list[tuple[int, int]] = []
    findings = verify_run(
        origin(finished_copy), listen=lambda e: seen.append((e["done"], e["total"]))
    )
    assert findings.faults == findings.notes == []
    assert findings.records == 11
    assert seen[-1] == (findings.files, findings.files)
    assert findings.files > 20
    assert contents(finished_copy.folder) == before


def test_a_replayed_and_an_orphaned_run_are_whole(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), "training.beta=0.2", step=2)
    assert verify_run(again.run).faults == verify_run(again.run).notes == []
    shutil.rmtree(origin(finished_copy).path)
    findings = verify_run(again.run)
    assert findings.faults == []
    assert any("origin tiny" in note for note in findings.notes)


def covered(run: Path, cache: Path) -> list[Path]:
    """Every file that something vouches for: logs, locks and the clock's traces are not.

    Notes of trials that were passed count for nothing where they are damaged.
    """
    loose = ("logs/", ".lock")
    files = [p for p in run.rglob("*") if not str(p.relative_to(run)).startswith(loose)]
    files += [
        path
        for path in cache.rglob("*")
        if path.name != ".lock" and not {"demo", "trials"} & {*path.parts}
    ]
    return sorted(p for p in files if p.is_file())


@pytest.mark.parametrize("fault", ["flip", "cut", "remove"])
def test_a_byte_flipped_a_file_cut_or_removed_is_named(
    finished: Outcome, finished_copy: Bench, fault: str
) -> None:
    run = origin(finished_copy)
    files = covered(run.path, finished_copy.folder / "cache")
    draw = random.Random(7)
    assert len(files) > 40
    for path in draw.sample(files, 25):
        content = path.read_bytes()
        if fault == "flip":
            flip(path, draw.randrange(len(content)))
        elif fault == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        if path == run.run_file and fault == "remove":
            with pytest.raises(UserError, match="no run at"):
                verify_run(run)
        else:
            findings = verify_run(run)
            is_cache = path.is_relative_to(finished_copy.folder / "cache")
            name = path.name.removesuffix(".sha256")
            if is_cache and fault == "remove":
                is_remade = path.suffix == ".parquet" or path.name.startswith("checked-")
                found = bool(findings.faults or findings.notes or is_remade)
            elif name == MARKER and fault == "remove":
                found = MARKER in " ".join(findings.notes)
            else:
                found = name in named(findings) or f"{path.parent.name} " in named(findings)
            assert found, f"{path}: {named(findings)}"
        path.write_bytes(content)
    assert verify_run(run).faults == []


def test_every_fault_is_listed_with_what_to_do(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    flip(run.model(1) / "model.safetensors")
    (run.step(2) / "metrics.jsonl").unlink()
    findings = verify_run(run)
    assert "step-1/model/model.safetensors was changed" in named(findings)
    assert "step-2/metrics.jsonl is missing" in named(findings)
    assert "step-1/model its digest is" in named(findings)
    assert all(fault.remedy for fault in findings.faults)


def test_a_reference_that_is_not_the_previous_model_is_a_fault(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    record = run.read_record("step-2")
    assert record is not None
    inputs = record["inputs"] | {"reference": "0" * 64}
    rewrite(run, "step-2", inputs=inputs)
    assert "step-2/record.json its reference is 0000000000000000, and" in named(verify_run(run))


def test_a_record_that_does_not_follow_from_run_yaml_is_a_fault(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    record = run.read_record("step-1")
    assert record is not None
    training = record["identity"]["training"] | {"beta": 0.7}
    rewrite(run, "step-1", identity=record["identity"] | {"training": training})
    found = named(verify_run(run))
    assert "its identity_digest is not that of its identity" in found
    assert "was made from something else: training.beta: 0.7 -> 0.1" in found


def test_a_run_yaml_with_a_matching_digest_but_other_settings_is_a_fault(
    finished_copy: Bench,
) -> None:
    run = origin(finished_copy)
    content = run.read_run().as_json()
    content["config"]["training"]["beta"] = 0.7
    run.write_run(content)
    assert "was made from something else: training.beta: 0.1 -> 0.7" in named(verify_run(run))


def test_a_cache_with_other_values_than_the_step_trained_against_is_a_fault(
    finished_copy: Bench, finished: Outcome
) -> None:
    run = origin(finished_copy)
    probe = run.read_record("probe-M_1")
    assert probe is not None
    cache = LogpCache(finished_copy.folder / "cache", probe["identity"]["scoring"])
    parts = list(cache.folder.glob("*.parquet"))
    rows = pq.read_table(parts[0])["row_digest"].to_pylist()
    for part in parts:
        part.unlink()
    ones = np.ones(len(rows), np.float32)
    cache.add(rows, ones, ones)
    assert "step-2/reference.parquet and the cache have other log-probs" in named(verify_run(run))


def test_a_base_model_that_changed_is_named_and_one_that_is_gone_is_a_note(
    finished_copy: Bench, finished: Outcome
) -> None:
    run = origin(finished_copy)
    content = run.read_run().as_json()
    base = finished_copy.folder / "base"
    shutil.copytree(content["config"]["model"]["name_or_path"], base)
    content["config"]["model"]["name_or_path"] = str(base)
    run.write_run(content)
    assert verify_run(run).faults == []
    flip(base / "model.safetensors")
    found = named(verify_run(run))
    assert "is another base model now: its digest is" in found
    assert content["inputs"]["model"][:16] in found
    shutil.rmtree(base)
    findings = verify_run(run)
    assert findings.faults == []
    assert "the base model is not at" in findings.notes[0]


def test_a_run_that_was_moved_without_its_cache_verifies(finished_copy: Bench) -> None:
    moved = finished_copy.folder / "elsewhere" / "runs" / "renamed"
    shutil.copytree(origin(finished_copy).path, moved)
    findings = verify_run(RunFolder(moved))
    assert findings.faults == []
    assert any("tokens are not in the cache" in note for note in findings.notes)


def test_a_run_that_is_not_finished_is_whole_so_far(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    shutil.rmtree(run.step(2))
    for name in ("report", "gamma-2", "probe-M_2"):
        run.record_path(name).unlink()
        checksum_path(run.record_path(name)).unlink()
    findings = verify_run(run)
    assert findings.faults == []
    assert findings.notes == ["the run is complete up to step-2, which is not done yet"]


def test_a_run_yaml_of_another_version_is_refused_with_a_message(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    content = run.read_run().as_json()
    content["config"]["training"]["old_setting"] = 1
    del content["config"]["probe"]
    run.write_run(content)
    with pytest.raises(UserError, match=r"does not fit this version .*old_setting: unknown key"):
        verify_run(run)
    content = json.loads(json.dumps(content))
    del content["inputs"]
    run.write_run(content)
    with pytest.raises(UserError, match="does not fit this version"):
        verify_run(run)


def test_a_cache_that_contradicts_a_step_has_a_remedy_that_works(finished_copy: Bench) -> None:
    """Rows that somebody added are as whole as those that were measured."""
    run, cache = origin(finished_copy), finished_copy.folder / "cache"
    record = run.read_record("step-2")
    assert record is not None
    for folder in cache.glob("logps/*"):
        key = json.loads((folder / "key.json").read_text())
        if key["model"] != record["inputs"]["reference"]:
            continue
        tables = [pq.read_table(part) for part in folder.glob("*.parquet")]
        for part in folder.glob("*.parquet"):
            part.unlink()
        for table in tables:
            rows = np.array([digest.as_py() for digest in table["row_digest"]], dtype="S16")
            sides = [table[f"{side}_logps"].to_numpy() - 1 for side in ("chosen", "rejected")]
            LogpCache(cache, key).add(rows, *sides)
    [fault] = [f for f in verify_run(run).faults if "other log-probs" in f.what]
    assert fault.file == "step-2/reference.parquet"
    named = Path(fault.remedy.removeprefix("delete ").split(":")[0])
    shutil.rmtree(named)
    assert not [f for f in verify_run(run).faults if "other log-probs" in f.what]
