"""What a step published is told from views, working files, and what another node made there."""

from pathlib import Path

import pytest

from sdpo.store.published_files import published_files, strays
from sdpo.store.records import Record
from sdpo.store.run_folder import RunFolder

PUBLISHED = ("metrics.jsonl", "model/config.json", "model/model.safetensors", "reference.parquet")
BESIDE = ("pairs.parquet", "tokens/pairs.arrow", "usable.parquet")
OTHERS = ("gamma.json", "model/README.md", "resume/00000002/state.json", "tracking/events")


@pytest.fixture(params=["runs", "resume", "tracking"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """A run with a step whose pairs are its own; whatever the folder of the runs is called."""
    run = RunFolder(tmp_path / request.param / "tiny")
    for name in (*PUBLISHED, *BESIDE, *OTHERS):
        path = run.step(2) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    files = [run.step(2) / name for name in BESIDE]
    run.write_record("data-2", {"node": "data-2", "identity": {}}, files=files)
    return run


def test_a_record_has_what_the_training_gave_and_nothing_else(run: RunFolder) -> None:
    found = [str(path.relative_to(run.step(2))) for path in published_files(run, "step-2")]
    assert found == sorted(PUBLISHED)


def test_what_nobody_published_is_a_stray(run: RunFolder) -> None:
    record = Record(files={f"step-2/{name}": "" for name in PUBLISHED})
    assert strays(run, "step-2", record) == []
    (run.step(2) / "model" / "extra.bin").write_text("mine")
    (run.step(2) / "model" / "gone").symlink_to(run.path / "nowhere")
    assert strays(run, "step-2", record) == ["step-2/model/extra.bin", "step-2/model/gone"]
