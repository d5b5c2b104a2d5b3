"""What nobody published is noticed by whoever hands a model on, or looks at it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench
from command_line import Sdpo
from histories import flip, origin, write_new_pairs

from sdpo.system.files import folder_digests

Change = Callable[[Path, Path], str]
"""Changes the model folder of a step (another one is given as well); what messages must name."""


def add_adapter(model: Path, other: Path) -> str:
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    shutil.copyfile(other / "model.safetensors", model / "adapter_model.safetensors")
    return "adapter_config.json"


def add_weights(model: Path, other: Path) -> str:
    shutil.copyfile(other / "model.safetensors", model / "model-2.safetensors")
    return "model-2.safetensors"


def add_code(model: Path, _other: Path) -> str:
    (model / "modeling_llama.py").write_text("raise SystemExit")
    return "modeling_llama.py"


def add_link(model: Path, other: Path) -> str:
    (model / "vocab.txt").symlink_to(other / "config.json")
    return "vocab.txt"


def add_folder(model: Path, other: Path) -> str:
    shutil.copytree(other, model / "original")
    return "original"


def swap_card(model: Path, other: Path) -> str:
    (model / "README.md").unlink()
    (model / "README.md").symlink_to(other / "config.json")
    return "README.md"


MORE = [add_adapter, add_weights, add_code, add_link, add_folder, swap_card]


def swap_weights(model: Path, other: Path) -> str:
    shutil.copyfile(other / "model.safetensors", model / "model.safetensors")
    return "step-2/model"


def flip_bit(model: Path, _other: Path) -> str:
    flip(model / "model.safetensors")
    return "step-2/model"


CHANGES = [*MORE, swap_weights, flip_bit]


@pytest.fixture(params=CHANGES, ids=lambda change: change.__name__)
def changed(finished_copy: Bench, request: pytest.FixtureRequest) -> tuple[Bench, str]:
    """A finished run with something wrong in the folder of its last model, and its name."""
    run, change = origin(finished_copy), request.param
    return finished_copy, change(run.model(2), run.model(1))


def test_verify_and_lineage_name_it(changed: tuple[Bench, str], sdpo: Sdpo) -> None:
    bench, name = changed
    for command in ("verify", "lineage"):
        called = sdpo(command, "tiny", "--runs-dir", bench.runs)
        assert called.code == 1
        assert name in called.told, called.told


def test_a_model_with_it_is_not_promoted(changed: tuple[Bench, str], sdpo: Sdpo) -> None:
    bench, name = changed
    called = sdpo("promote", "tiny", "--name", "mine", "--runs-dir", bench.runs)
    assert called.code in (1, 2)
    assert name in called.told
    assert "Traceback" not in called.told
    assert not (bench.runs / "registry.json").exists()


def test_a_model_with_it_is_not_exported(changed: tuple[Bench, str], sdpo: Sdpo) -> None:
    bench, name = changed
    out = bench.folder / "exported"
    called = sdpo("export", "tiny", out, "--runs-dir", bench.runs)
    assert called.code in (1, 2)
    assert name in called.told
    assert not out.exists()


def test_a_copied_folder_with_more_in_it_is_told(finished_copy: Bench, sdpo: Sdpo) -> None:
    run, copied = origin(finished_copy), finished_copy.folder / "copied"
    shutil.copytree(run.model(2), copied)
    assert sdpo("lineage", copied).code == 0
    name = add_code(copied, run.model(1))
    called = sdpo("lineage", copied)
    assert called.code == 1
    assert f"{name} is no part of the model" in called.told


def test_the_remedy_works(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy)
    name = add_weights(run.model(2), run.model(1))
    (run.model(2) / name).rename(finished_copy.folder / name)
    assert sdpo("verify", "tiny", "--runs-dir", finished_copy.runs).code == 0
    assert sdpo("promote", "tiny", "--runs-dir", finished_copy.runs).code == 0


@pytest.mark.parametrize("pattern", ["M_{}.parquet", "M_{}.completions.json"])
def test_probes_that_were_swapped_are_not_drawn(
    finished_copy: Bench, sdpo: Sdpo, pattern: str
) -> None:
    run = origin(finished_copy)
    first, second = (run.probes / pattern.format(number) for number in (0, 2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    before = run.report.read_bytes()
    called = sdpo("report", "tiny", "--runs-dir", finished_copy.runs)
    assert called.code == 1
    assert f"{first.name} is not what the run wrote there" in called.told
    assert run.report.read_bytes() == before


def test_a_probe_without_a_record_is_not_drawn(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy)
    record = run.record_path("probe-M_2")
    record.unlink()
    assert sdpo("report", "tiny", "--runs-dir", finished_copy.runs).code == 0
    shutil.copyfile(run.probes / "M_0.parquet", run.probes / "M_2.parquet")
    drawn = run.report.read_bytes()
    assert sdpo("report", "tiny", "--runs-dir", finished_copy.runs).code == 0
    assert run.report.read_bytes() == drawn, "whatever lies there"


@pytest.mark.parametrize("name", ["step-1/metrics.jsonl", "plan.json"])
def test_other_files_that_were_changed_are_not_drawn(
    finished_copy: Bench, sdpo: Sdpo, name: str
) -> None:
    path = origin(finished_copy).path / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    called = sdpo("report", "tiny", "--runs-dir", finished_copy.runs)
    assert called.code == 1
    assert f"{path.name} is not what the run wrote there" in called.told


def test_a_finished_run_is_exported_with_its_own_files(finished_copy: Bench, sdpo: Sdpo) -> None:
    run, out = origin(finished_copy), finished_copy.folder / "exported"
    options = ("--dtype", "float32", "--runs-dir", finished_copy.runs)
    assert sdpo("export", "tiny", out, *options).code == 0
    assert folder_digests(out) == folder_digests(run.model(2))


def test_a_run_whose_pairs_or_plan_are_damaged_is_not_extended(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    new = write_new_pairs(finished_copy.folder / "new.jsonl", *range(20))
    runs = ("--runs-dir", finished_copy.runs)
    for name in ("pairs.parquet", "plan.parquet"):
        path = origin(finished_copy).path / name
        content = path.read_bytes()
        middle = len(content) // 3
        flipped = bytes([content[middle] ^ 4])
        for damaged in (
            content[:middle] + flipped + content[middle + 1 :],
            content[:500],
            b"",
            b"mine",
        ):
            path.write_bytes(damaged)
            refused = sdpo("extend", "tiny", "--source", new, "--name", "more", *runs)
            assert refused.code == 1
            assert f"{name} was changed" in refused.told
            assert "Traceback" not in refused.told
            assert not (finished_copy.runs / "more").exists()
        path.unlink()
        refused = sdpo("extend", "tiny", "--source", new, "--name", "more", *runs)
        assert refused.code in (1, 2), refused.told
        assert "tiny" in refused.told
        assert "Traceback" not in refused.told
        assert not (finished_copy.runs / "more").exists()
        path.write_bytes(content)
