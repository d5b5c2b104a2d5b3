"""ZeRO on two CPU processes (gloo), with a tracker running, is the step of one process."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from forked_ranks import forked_ranks
from safetensors.torch import load_file

from sdpo.config import (
    EvaluationConfig,
    LaunchConfig,
    ProbeConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.identity.model_digest import model_digest, tensor_entries
from sdpo.inputs import demo
from sdpo.processes.supervisor import run_stage
from sdpo.store.resume_states import states_folder

from ..training_helpers.models import mixture_beside
from ..training_helpers.runs import PreparedRun, prepare_run, stop_step

pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")

TRAINING = TrainingConfig(
    beta=0.2, learning_rate=1e-3, weight_decay=30.0, batch_size=6, seed=3, precision="fp32"
)
"""A decay that shows: without it on the matrices the losses would be others."""


def run_step(folder, *, strategy: str, processes: int, **fields) -> PreparedRun:
    run = fields.pop("run", None) or prepare_run(folder, pairs={0: 4, 1: 13, 2: 4})
    launch = LaunchConfig(processes=processes, strategy=strategy, device="cpu", threads=1)
    probe = ProbeConfig(completions=1, completion_tokens=4)
    fields = {"measure_input": True, "measure_output": True, "probe": probe} | fields
    evaluation = EvaluationConfig(every=2)
    spec = run.spec(1, TRAINING, launch=launch, evaluation=evaluation, **fields)
    run_stage(spec, listen=lambda event: None)
    return run


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> PreparedRun:
    return run_step(tmp_path_factory.mktemp("one"), strategy="single", processes=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], PreparedRun]:
    """``whole(strategy)``: the step under ZeRO, never stopped; made once."""

    @cache
    def make(strategy: str) -> PreparedRun:
        tracking = TrackingConfig(tools=["tensorboard"])
        folder = tmp_path_factory.mktemp(strategy)
        return run_step(folder, strategy=strategy, processes=2, tracking=tracking)

    return make


@pytest.mark.parametrize(
    "strategy",
    [
        "deepspeed_zero3",
        pytest.param("deepspeed_zero2", marks=pytest.mark.slow),
        pytest.param("deepspeed_zero1", marks=pytest.mark.slow),
    ],
)
def test_zero_gives_the_curve_and_the_weights_of_one_process(single, whole, strategy):
    run = whole(strategy)
    for line, other in zip(single.metrics(1), run.metrics(1), strict=True):
        for name in ("loss", "eval_loss", "grad_norm", "rewards/margins"):
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=1e-3, abs=1e-4), name
    published = run.folder.model(1)
    names = [entry.name for entry in tensor_entries(published)]
    assert names == [entry.name for entry in tensor_entries(single.folder.model(1))]
    assert run.record(1)["outputs"]["model"] == model_digest(published)
    assert list((run.folder.step(1) / "tracking").rglob("events*"))
    for name in ("M_0.completions.json", "M_1.completions.json"):
        said = [json.loads((r.folder.probes / name).read_text()) for r in (single, run)]
        assert said[0] == said[1], "ranks that share weights write them together"


@pytest.mark.parametrize(
    ("strategy", "killed"),
    [
        ("deepspeed_zero3", False),
        pytest.param("deepspeed_zero3", True, marks=pytest.mark.slow),
        pytest.param("deepspeed_zero2", False, marks=pytest.mark.slow),
        pytest.param("deepspeed_zero2", True, marks=pytest.mark.slow),
        pytest.param("deepspeed_zero1", False, marks=pytest.mark.slow),
        pytest.param("deepspeed_zero1", True, marks=pytest.mark.slow),
    ],
)
def test_zero_goes_on_where_it_stopped(whole, tmp_path, strategy, killed):
    broken = prepare_run(tmp_path / "broken", pairs={0: 4, 1: 13, 2: 4})
    launch = LaunchConfig(processes=2, strategy=strategy, device="cpu", threads=1)
    with nullcontext() if killed else forked_ranks():
        stop_step(broken, killed=killed, training=TRAINING, launch=launch)
    names = {path.name for path in states_folder(broken.folder.step(1)).glob("*/zero-*")}
    assert names == {"zero-0.safetensors", "zero-1.safetensors"}
    with forked_ranks():
        run_step(tmp_path / "broken", strategy=strategy, processes=2, run=broken)
    assert broken.record(1)["resumed_at"]
    assert broken.record(1)["outputs"] == whole(strategy).record(1)["outputs"]
    assert broken.metrics(1) == whole(strategy).metrics(1)


@pytest.mark.slow
def test_zero_3_publishes_a_mixture_by_the_tensors_of_its_files(tmp_path):
    """Its modules hold all experts in one weight: FSDP2, which reads rows of files, refuses it."""
    llama = demo.materialise("demo:tiny-llama", tmp_path / "demo")
    model = mixture_beside(llama, tmp_path / "model")
    models = []
    with forked_ranks():
        for strategy, processes in (("single", 1), ("deepspeed_zero3", 2)):
            run = prepare_run(tmp_path / strategy, pairs={0: 4, 1: 13, 2: 4}, model=model)
            run_step(tmp_path, strategy=strategy, processes=processes, run=run)
            names = [entry.name for entry in tensor_entries(run.folder.model(1))]
            assert names == [entry.name for entry in tensor_entries(model)]
            assert any(".experts.3." in name for name in names)
            models.append(load_file(run.folder.model(1) / "model.safetensors"))
    torch.testing.assert_close(models[1], models[0], rtol=1e-3, atol=2e-3)
