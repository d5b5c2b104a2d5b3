"""Runs that version 0.1 made are read, verified and extended; what cannot be says so in a line.

``tests/old_runs/0.1.tar.gz`` is a whole run of it: two natural steps of 13 pairs over a Llama of
6,000 weights, made with ``sdpo run``, with its model, data and caches; its logs are left out. Its
paths are of a machine that is gone.
"""

import json
import tarfile
from pathlib import Path

import pytest
from bench import Outcome
from forked_stages import forked_stages
from histories import replayed, write_new_pairs

from sdpo.errors import ConfigError
from sdpo.events import Event
from sdpo.history.extend import extend_run
from sdpo.history.target import read_lineage
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.stats.gamma import gamma_view
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import pairs_of_steps, read_probe
from sdpo.system.files import json_text

ARCHIVE = Path(__file__).parent / "old_runs" / "0.1.tar.gz"


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return RunFolder(tmp_path / "runs" / "old")


def base(run: RunFolder) -> str:
    """An override that says where its model is now."""
    return f"model.name_or_path={run.path.parents[1] / 'model'}"


def test_an_old_run_is_whole(old: RunFolder) -> None:
    found = verify_run(old)
    assert not found.faults
    assert any("the base model is not at" in note for note in found.notes)
    assert old.complete_steps() == [1, 2]


def test_run_yaml_of_an_old_run_is_read_whole_and_written_as_it_was(old: RunFolder) -> None:
    before = old.run_file.read_bytes()
    said = old.read_run()
    assert (said.name, said.origin, len(said.inputs["model"])) == ("old", None, 64)
    old.write_run(said.as_json())
    assert old.run_file.read_bytes() == before


@pytest.mark.parametrize("step", [1, 2])
def test_lineage_of_an_old_model_is_read_whole(old: RunFolder, step: int) -> None:
    said = read_lineage(old.model(step))
    written = (old.model(step) / "lineage.json").read_text(encoding="utf-8")
    assert json_text(said.as_json()) == written
    assert [entry.name for entry in said.steps] == [f"M_{n}" for n in range(1, step + 1)]


@pytest.mark.parametrize("step", [1, 2])
def test_gamma_of_an_old_run_is_what_it_wrote_field_by_field(old: RunFolder, step: int) -> None:
    said = old.record(f"gamma-{step}").identity
    tables = {f"M_{model}": read_probe(old, model, last=step) for model in range(step + 1)}
    options = {name: said[name] for name in ("step", "beta", "resamples", "seed")}
    rows = gamma_view(tables, sizes=pairs_of_steps(old), **options)

    def told(text: str) -> str:
        """Names and their order count, and numbers up to what another machine adds otherwise."""
        return str(json.loads(text, parse_float=lambda digits: round(float(digits), 9)))

    now = json.dumps([row.as_json() for row in rows])
    assert told(now) == told((old.step(step) / "gamma.json").read_text(encoding="utf-8"))


def test_the_replay_of_an_old_step_is_refused_in_one_line_since_rows_are_read_by_newer_rules(
    old: RunFolder,
) -> None:
    with pytest.raises(ConfigError, match=r"\(data: data_version: 1 -> 2\).*run the recipe under"):
        replayed(old, base(old), step=2, name="again")
    assert not (old.path.parent / "again").exists()


def test_an_old_run_is_extended_by_a_step(old: RunFolder, tmp_path: Path) -> None:
    new = write_new_pairs(tmp_path / "new.jsonl", *range(30))
    events: list[Event] = []
    with forked_stages():
        found = extend_run(
            old,
            [str(new)],
            overrides=[base(old)],
            name="more",
            host=Host(listen=events.append),
        )
    assert found.chain is not None
    outcome = Outcome(found.chain, events)
    assert outcome.run.complete_steps() == [1, 2, 3]
    assert outcome.record("step-2")["outputs"] == old.read_record("step-2")["outputs"]


def test_the_archive_names_no_file_outside_and_nothing_but_data() -> None:
    with tarfile.open(ARCHIVE) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    kinds = {Path(member.name).suffix for member in members if member.isfile()}
    assert not kinds & {".py", ".pkl", ".pt", ".bin", ".pth"}
