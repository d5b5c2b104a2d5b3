"""Adapters that two CPU processes hold in shares are those of one process, from step to step."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from sdpo.config import LaunchConfig, ModelConfig
from sdpo.identity.model_digest import model_digest

from ..training_helpers.ranks import on_ranks
from ..training_helpers.runs import FEW_STEPS, LAUNCH, PreparedRun, prepare_run

pytestmark = [
    # Of peft and transformers 5.23, about each other's names.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is:FutureWarning"),
]

PAIRS = {0: 3, 1: 13, 2: 5}
TRAINING = FEW_STEPS.model_copy(update={"micro_batch_tokens": 0, "lora_r": 4, "lora_alpha": 8})
"""Batches of 6, 6 and 1, then of 5: with the third one, a process has no pair of its own."""
FORMS = {
    "LoRA, merged": {},
    "LoRA, handed on": {"lora_handoff": "continue"},
    "DoRA, merged": {"lora_dora": True},
    "DoRA, handed on": {"lora_handoff": "continue", "lora_dora": True},
    "LoRA beside whole modules, merged": {"lora_modules_to_save": ["embed_tokens"]},
    "LoRA beside whole modules, handed on": {
        "lora_handoff": "continue",
        "lora_modules_to_save": ["embed_tokens"],
    },
}


def take(run: PreparedRun, step: int, form: str, launch: LaunchConfig, precision: str) -> None:
    """A step's stage in this process."""
    from sdpo.events import EventWriter
    from sdpo.stages import step as stage

    options = {
        "launch": launch,
        "measure_output": True,
        "model": ModelConfig(name_or_path=str(run.model), base_precision=precision),
    }
    if step == 1:
        digest = model_digest(run.model, precision=precision)
        options |= {"measure_input": True, "input_digest": digest}
    what = "selective" if launch.strategy == "fsdp2" else "blocks"
    recomputed = {"gradient_checkpointing": launch.shares_weights, "recomputation": what}
    training = TRAINING.model_copy(update=FORMS[form] | recomputed)
    stage.run(run.spec(step, training, **options), EventWriter(None))


def on_rank(rank: int, tell, run: PreparedRun, step: int, form: str, *how: str) -> None:
    strategy, precision = how
    launch = LaunchConfig(processes=2, strategy=strategy, device="cpu", threads=1)
    take(run, step, form, launch, precision)
    tell("done")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Callable[..., PreparedRun]:
    """``single(form, precision)``: both steps in one process; made once."""
    from ..training_helpers.models import accelerator

    @cache
    def make(form: str, precision: str) -> PreparedRun:
        run = prepare_run(tmp_path_factory.mktemp("single"), pairs=PAIRS)
        for step in (1, 2):
            accelerator()  # the state that an earlier test left behind is gone
            take(run, step, form, LAUNCH, precision)
        return run

    return make


def weights(run: PreparedRun, step: int) -> dict[str, torch.Tensor]:
    (file,) = run.folder.model(step).glob("*.safetensors")
    return load_file(file)


SLOW = pytest.mark.slow
CELLS = [
    ("fsdp2", "LoRA beside whole modules, merged"),
    ("deepspeed_zero3", "LoRA, merged"),
]
"""These are tested each time, all others with the slow tests."""


@pytest.mark.parametrize(
    ("strategy", "form"),
    [
        pytest.param(strategy, form, marks=() if (strategy, form) in CELLS else SLOW)
        for strategy in ("fsdp2", "deepspeed_zero3", "deepspeed_zero2", "deepspeed_zero1")
        for form in FORMS
    ],
)
def test_adapters_in_shares_are_those_of_one_process(single, tmp_path, strategy, form):
    if strategy != "fsdp2":
        pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    check_both_steps(tmp_path, single(form, "fp32"), form, strategy, "fp32")


@SLOW
@pytest.mark.parametrize("strategy", ["deepspeed_zero2", "deepspeed_zero1"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("form", ["LoRA, handed on", "DoRA, handed on"])
def test_adapters_over_a_base_in_fewer_bits_are_those_of_one_process(
    single, tmp_path, strategy, form, precision
):
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    if precision != "bf16":
        pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    check_both_steps(tmp_path, single(form, precision), form, strategy, precision)


def check_both_steps(folder, alone: PreparedRun, form: str, strategy: str, precision: str) -> None:
    run = prepare_run(folder, pairs=PAIRS)
    for step in (1, 2):
        assert on_ranks(on_rank, run, step, form, strategy, precision) == ["done", "done"]
    check_same(run, alone)


def check_same(run: PreparedRun, alone: PreparedRun) -> None:
    for step in (1, 2):
        record = run.record(step)
        assert record["outputs"]["model"] == model_digest(run.folder.model(step))
        assert record["gate"]["max_abs_difference_nats"] < 1e-3
        for line, other in zip(alone.metrics(step), run.metrics(step), strict=True):
            assert set(line) == set(other)
            for name in {"loss", "eval_loss", "grad_norm", "rewards/margins"} & set(line):
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-4), name
        expected, found = weights(alone, step), weights(run, step)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        probes = [
            pq.read_table(r.folder.probes / f"M_{step}.parquet")["chosen_logps"].to_numpy()
            for r in (alone, run)
        ]
        np.testing.assert_allclose(probes[1], probes[0], rtol=0, atol=5e-3)
    losses = [line["loss"] for step in (1, 2) for line in run.metrics(step) if "loss" in line]
    assert max(losses) - min(losses) > 0.02, "the model learns something"
    assert run.record(2)["scored_rows"] == {"computed": 0, "cached": 5}, "base and adapter's own"
