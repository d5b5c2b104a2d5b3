"""Mixtures of experts and their routers' loss are on two processes what they are on one.

Files of Mixtral have a tensor of each expert, and its experts have adapters too: FSDP2 refuses such
files. Those of GPT-OSS have one tensor of all experts, which no name of a module gives adapters.
"""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from forked_ranks import forked_ranks
from safetensors.torch import load_file
from small_shares import SHARE_ALL
from transformers import AutoConfig, AutoTokenizer

from benchmarks.small_models import small_model
from sdpo.config import LaunchConfig, ModelConfig
from sdpo.inputs import demo
from sdpo.processes.supervisor import run_stage

from ..training_helpers.models import mixture_beside
from ..training_helpers.runs import FEW_STEPS, LAUNCH, PreparedRun, prepare_run, skip_without

SLOW = pytest.mark.slow
TRAINING = FEW_STEPS.model_copy(update={"warmup_ratio": 0.0, "router_aux_loss": 0.5})
"""Batches of 6, 6 and 1, then of 5: with the third one, a process has no pair of its own."""
FORMS = {
    "all weights": {},
    "adapters, merged": {"lora_r": 4},
    "adapters, handed on": {"lora_r": 4, "lora_handoff": "continue"},
}
EACH_TIME = ("ddp", "all weights")
"""This one is tested each time, all others with the slow tests."""


def gpt_oss(llama: Path, folder: Path) -> Path:
    """A tiny GPT-OSS of random weights, with the tokenizer of another model."""
    words = AutoConfig.from_pretrained(llama).vocab_size
    torch.manual_seed(4)
    small_model("gpt_oss", vocab_size=words).save_pretrained(folder)
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    shutil.copy(llama / "generation_config.json", folder)
    return folder


def taken(folder: Path, kind: str, form: str, launch: LaunchConfig) -> PreparedRun:
    """A run of two steps."""
    llama = demo.materialise("demo:tiny-llama", folder / "demo")
    make = mixture_beside if kind == "mixtral" else gpt_oss
    run = prepare_run(folder, pairs={0: 3, 1: 13, 2: 5}, model=make(llama, folder / "model"))
    attention = "sdpa" if kind == "mixtral" else "eager"
    training = TRAINING.model_copy(update=FORMS[form])
    with forked_ranks(first=SHARE_ALL if launch.zero_stage else ""):
        for step in (1, 2):
            spec = run.spec(
                step,
                training,
                launch=launch,
                model=ModelConfig(name_or_path=str(run.model), attention=attention),
                measure_output=True,
            )
            run_stage(spec, listen=lambda event: None)
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str, str], PreparedRun]:
    """``alone(kind, form)``: the steps in one process; made once."""

    @cache
    def make(kind: str, form: str) -> PreparedRun:
        return taken(tmp_path_factory.mktemp("alone"), kind, form, LAUNCH)

    return make


def weights(run: PreparedRun, step: int) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in run.folder.model(step).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    ("strategy", "form"),
    [
        pytest.param(strategy, form, marks=() if (strategy, form) == EACH_TIME else SLOW)
        for strategy in ("ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
        for form in FORMS
    ],
)
def test_experts_and_their_routers_learn_on_two_processes_as_on_one(
    alone, tmp_path, strategy, form
):
    skip_without(strategy)
    kind = "gpt_oss" if strategy == "fsdp2" else "mixtral"
    launch = LaunchConfig(processes=2, strategy=strategy, device="cpu", threads=1)
    one, run = alone(kind, form), taken(tmp_path, kind, form, launch)
    for step in (1, 2):
        curves = [[line for line in r.metrics(step) if "grad_norm" in line] for r in (one, run)]
        assert len(curves[0]) == len(curves[1]) == (3 if step == 1 else 1)
        for line, other in zip(*curves, strict=True):
            for name in ("loss", "aux_loss", "grad_norm", "logps/chosen"):
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-4), name
        found, expected = weights(run, step), weights(one, step)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            # AdamW makes of a gradient's last bits, near zero, a part of an update: of few numbers.
            assert (found[name] - tensor).norm() <= 1e-2 * tensor.norm(), name
    moved = [line["aux_loss"] for line in one.metrics(1) if "aux_loss" in line]
    assert max(moved) - min(moved) > 1e-2, "what a rank alone would have is another number"
    assert run.record(2)["scored_rows"] == {"computed": 0, "cached": 5}
    first, second = weights(one, 1), weights(one, 2)
    of_experts = [name for name in first if ".experts." in name and not name.endswith("bias")]
    assert bool(of_experts) == (form != "adapters, handed on" or kind == "mixtral")
    learned = [name for name in of_experts if not torch.equal(first[name], second[name])]
    if form == "all weights" or kind == "mixtral":
        assert learned == of_experts
