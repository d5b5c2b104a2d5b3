"""A step under ``accelerate launch`` with two CPU processes (gloo) is the step of one process.

The launcher itself starts what `double` has, and what is killed; others start as forks, which
import nothing.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forked_ranks import forked_ranks
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from benchmarks.small_models import small_model
from sdpo.config import EvaluationConfig, LaunchConfig, ModelConfig, TrainingConfig
from sdpo.errors import Fault
from sdpo.identity.model_digest import model_digest
from sdpo.inputs import demo
from sdpo.processes.supervisor import run_stage

from ..training_helpers.runs import (
    LAUNCH,
    PreparedRun,
    prepare_run,
    skip_without,
    stage_processes,
    stop_step,
)

TWO = LaunchConfig(processes=2, strategy="ddp", device="cpu", threads=1)
PAIRS = {0: 5, 1: 19, 2: 6}
TRAINING = TrainingConfig(
    beta=0.2, learning_rate=1e-3, batch_size=6, seed=3, precision="fp32", micro_batch_tokens=300
)
"""Batches of 6, 6, 6 and 1: with the last one, a process has no pair of its own."""


def run_step(run: PreparedRun, **fields) -> list[dict]:
    """Step 1 in processes of its own; returns the events it sent."""
    spec = run.spec(
        1,
        fields.pop("training", TRAINING),
        measure_input=True,
        measure_output=True,
        evaluation=EvaluationConfig(every=2),
        **fields,
    )
    events: list[dict] = []
    run_stage(spec, listen=lambda event: events.append(dict(event)))
    return events


@pytest.fixture
def as_forks() -> Iterator[None]:
    with forked_ranks():
        yield


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> PreparedRun:
    run = prepare_run(tmp_path_factory.mktemp("single"), pairs=PAIRS)
    with forked_ranks():
        run_step(run)
    return run


@pytest.fixture(scope="module")
def double(tmp_path_factory) -> PreparedRun:
    run = prepare_run(tmp_path_factory.mktemp("double"), pairs=PAIRS)
    run_step(run, launch=TWO)
    return run


def test_two_processes_give_the_loss_curve_of_one(single, double):
    curve, curve_of_two = single.metrics(1), double.metrics(1)
    assert [line["step"] for line in curve_of_two] == [line["step"] for line in curve]
    for line, other in zip(curve, curve_of_two, strict=True):
        assert set(line) == set(other)
        for name in set(line) - {"rewards/accuracies", "eval_rewards/accuracies"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-4), name
    losses = [line["loss"] for line in curve if "loss" in line]
    assert len(losses) == 4
    assert max(losses) - min(losses) > 0.05, "the model learns something"


def test_two_processes_publish_one_model_with_its_record(single, double):
    record = double.record(1)
    assert record["environment"]["processes"] == 2
    assert record["environment"]["strategy"] == "ddp"
    assert record["outputs"]["model"] == model_digest(double.folder.model(1))
    assert double.folder.damage(record) == []
    assert record["gate"]["max_abs_difference_nats"] < 1e-3
    assert record["optimizer_steps"] == single.record(1)["optimizer_steps"] == 4


def test_two_processes_score_every_row_once_and_the_same(single, double):
    assert double.record(1)["scored_rows"] == {"computed": 19, "cached": 0}
    reference = [
        pq.read_table(run.folder.step(1) / "reference.parquet") for run in (single, double)
    ]
    assert reference[0].equals(reference[1]), "on CPU a row does not depend on its neighbours"
    rows = [row for part in cached_parts(double) for row in part["row_digest"].to_pylist()]
    tokens = double.token_file()
    digests = {tokens.row(index).row_digest for index in range(len(tokens))}
    assert len(rows) == 2 * len(digests), "every pair under M_0 and under M_1"
    assert set(rows) == digests


def cached_parts(run: PreparedRun) -> list:
    return [pq.read_table(part) for part in (run.cache / "logps").rglob("*.parquet")]


@pytest.mark.parametrize("model", ["M_0", "M_1"])
def test_two_processes_measure_the_same(single, double, model):
    one, two = (
        pq.read_table(run.folder.probes / f"{model}.parquet").to_pandas()
        for run in (single, double)
    )
    assert one["pair_id"].tolist() == two["pair_id"].tolist()
    tolerance = 0 if model == "M_0" else 2e-3
    for column in ("chosen_logps", "rejected_logps"):
        np.testing.assert_allclose(two[column], one[column], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(False, marks=pytest.mark.slow, id="asked to stop"),
        pytest.param(True, id="killed"),
    ],
)
def test_two_processes_go_on_where_they_stopped(double, tmp_path, killed):
    run = prepare_run(tmp_path, pairs=PAIRS)
    with nullcontext() if killed else forked_ranks():
        saved = stop_step(run, killed=killed, launch=TWO, training=TRAINING)
    with forked_ranks():
        events = run_step(run, launch=TWO)
    assert [event["optimizer_step"] for event in events if event["event"] == "resume"] == [saved]
    assert run.record(1)["outputs"] == double.record(1)["outputs"], "the sum of two has no order"
    assert run.metrics(1) == double.metrics(1)


@pytest.mark.usefixtures("as_forks")
def test_a_fault_of_one_process_ends_them_all_and_is_told(tmp_path):
    run = prepare_run(tmp_path, pairs={1: 8})
    wild = TRAINING.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(Fault, match="nothing of this step is published"):
        run_step(run, launch=TWO, training=wild)
    assert run.folder.read_record("step-1") is None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_rank_that_is_killed_is_named_within_a_minute_and_the_step_goes_on(tmp_path, strategy):
    skip_without(strategy)
    run = prepare_run(tmp_path, pairs={0: 2, 1: 13})
    training = TRAINING.model_copy(update={"checkpoint_every": 1})
    spec = run.spec(1, training, launch=TWO.model_copy(update={"strategy": strategy}))
    ended_s: list[float] = []

    def listen(event) -> None:
        if event.event == "checkpoint" and not ended_s:
            ended_s.append(time.monotonic())
            ranks = [p for p in stage_processes(spec) if p.environ().get("RANK") == "1"]
            assert len(ranks) == 1
            ranks[0].kill()

    with pytest.raises(Fault, match=r"process 1 was killed from outside \(SIGKILL\)"):
        run_stage(spec, listen=listen)
    assert time.monotonic() - ended_s[0] < 60
    assert not stage_processes(spec)
    run_stage(spec, listen=lambda event: None)
    assert run.record(1)["resumed_at"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_an_adapter_is_handed_on_by_two_processes_as_by_one(tmp_path, kind, dora):
    if kind in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    settings = {"lora_r": 4, "lora_handoff": "continue", "lora_dora": dora, "learning_rate": 1e-2}
    training = TRAINING.model_copy(update=settings)
    models = []
    for launch in (LAUNCH, TWO):
        run = prepare_run(tmp_path / f"{launch.processes}", pairs=PAIRS)
        held = ModelConfig(name_or_path=str(run.model), base_precision=kind)
        digest = model_digest(run.model, precision=kind)
        run_step(run, launch=launch, training=training, model=held, input_digest=digest)
        run_stage(run.spec(2, training, launch=launch, model=held), listen=lambda _: None)
        record = run.record(2)
        assert record["gate"]["max_abs_difference_nats"] < 1e-3
        assert record["scored_rows"] == {"computed": 0, "cached": 6}
        models.append(load_file(run.folder.model(2) / "adapter_model.safetensors"))
    torch.testing.assert_close(models[0], models[1], rtol=1e-2, atol=5e-3)


@pytest.mark.usefixtures("as_forks")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parameters_that_no_loss_reaches_do_not_end_two_processes(tmp_path):
    """Those of an index of keys, say, of which a rank is taken: DeepSeek-V3.2's."""
    llama = demo.materialise("demo:tiny-llama", tmp_path / "demo")
    model = tmp_path / "model"
    words = AutoConfig.from_pretrained(llama).vocab_size
    small_model("deepseek_v32", vocab_size=words).save_pretrained(model)
    AutoTokenizer.from_pretrained(llama).save_pretrained(model)
    shutil.copy(llama / "generation_config.json", model)
    run = prepare_run(tmp_path / "two", pairs={1: 13}, model=model)
    run_step(run, launch=TWO)
    before = load_file(model / "model.safetensors")
    after = load_file(run.folder.model(1) / "model.safetensors")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if ".indexer." in name} <= kept
    assert len(kept) < len(before) / 2
