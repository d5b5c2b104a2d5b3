"""What a stage has written is what changed of its run, its other results and its log-probs."""

import os
from pathlib import Path

import numpy as np
import pytest

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig, WinRateConfig
from sdpo.model_names import NamedModel
from sdpo.processes.judging_specs import CompletionsSpec
from sdpo.processes.nodes.needed_files import files_of, look_of, written_since
from sdpo.processes.spec import Spec
from sdpo.processes.stage_specs import StepSpec
from sdpo.processes.step_caches import open_cache

from ...training_helpers.runs import prepare_run


def test_what_was_written_is_told_with_its_content(tmp_path: Path) -> None:
    launch = LaunchConfig(device="cpu")
    spec = Spec(name="step-1", run=tmp_path, model=ModelConfig(name_or_path="m"), launch=launch)
    for name in ("step-1/metrics.jsonl", "logs/status.json", "pairs.parquet", ".lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    before = look_of(spec)
    assert written_since(before, spec) == []
    for name in ("step-1/metrics.jsonl", "step-1/record.json", "logs/status.json", ".lock"):
        (tmp_path / name).write_text("after")
    (tmp_path / ".tmp-model").mkdir()
    (tmp_path / ".tmp-model" / "weights").write_text("half")
    same = tmp_path / "pairs.parquet"
    os.utime(same, ns=(1, 1))
    found = written_since(before, spec)
    assert [file.path.name for file in found] == ["pairs.parquet", "metrics.jsonl", "record.json"]
    assert {file.size for file in found} == {5, 6}


def test_what_a_stage_writes_into_the_cache_is_told_too(tmp_path: Path) -> None:
    out = tmp_path / "cache" / "completions" / "key"
    spec = CompletionsSpec(
        name="answers-M_1", run=tmp_path / "run", model=ModelConfig(name_or_path="m"),
        launch=LaunchConfig(device="cpu"), base=tmp_path, prompts=tmp_path / "prompts.parquet",
        policy=NamedModel(name="M_1", folder=tmp_path, digest="d"), bf16=False,
        micro_batch_tokens=0, win_rate=WinRateConfig(), out=out,
    )  # fmt: skip
    before = look_of(spec)
    out.mkdir(parents=True)
    (out / "completions.parquet").write_text("answers")
    assert [file.path for file in written_since(before, spec)] == [out / "completions.parquet"]


@pytest.fixture
def step(tmp_path: Path) -> StepSpec:
    return prepare_run(tmp_path, pairs={0: 2, 1: 2, 2: 2}).spec(1, TrainingConfig())


def test_log_probs_that_a_step_adds_are_told_and_seen_before_the_next_one_reads_them(
    step: StepSpec, tmp_path: Path
) -> None:
    cache, other = open_cache(step, step.input_digest), open_cache(step, "0" * 64)
    one = np.zeros(1, np.float32)
    cache.add([b"0" * 16], one, one)
    before = look_of(step)
    assert written_since(before, step) == []
    other.add([b"1" * 16], one, one)
    other.note_check([b"1" * 16], software={"torch": "2"}, numbers={"max_abs_difference_nats": 0})
    written = {file.path for file in written_since(before, step)}
    assert written == {each for each in other.folder.iterdir() if each.name != "key.json"}
    assert len(written) == 2
    needed = {file.path for file in files_of(step, tmp_path / "step-1.json")}
    assert set(cache.folder.glob("*.parquet")) <= needed, "log-probs under what it starts from"
    assert not written & needed, "those under other models are no matter of its"
