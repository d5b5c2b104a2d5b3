"""What `sdpo check` says of architectures with parts that others do not have."""

import json
from pathlib import Path

import pytest
from bench import Bench, Values
from command_line import Sdpo
from transformers import AutoTokenizer

from benchmarks.small_models import small_model

PAIRS = [
    {"prompt": f"Question {k}?", "chosen": f"good answer {k}", "rejected": f"bad answer {k}"}
    for k in range(24)
]
PASSES = ["dots3_note_text", "gemma4_text", "deepseek_v3", "zamba2", "qwen4_exp_text", "nemotron_h"]
REFUSED = {
    "adapters on blocks that share weights": ("zamba", {"lora_r": 2}, "share one weight"),
    "adapters on a product in groups": ("deepseek_v4", {"lora_r": 2}, "DeepseekV4GroupedLinear"),
    "adapters on a router with several answers": ("llama4_text", {"lora_r": 2}, "Llama4Router"),
    "DoRA on experts that are one tensor": (
        "mixtral",
        {"lora_r": 2, "lora_dora": True},
        "training.lora_dora: experts that are one tensor have plain adapters",
    ),
    "dropout before adapters on experts": (
        "mixtral",
        {"lora_r": 2, "lora_dropout": 0.1},
        "training.lora_dropout: experts that are one tensor have plain adapters",
    ),
    "adapters on a state space": ("falcon_h1", {"lora_r": 2}, "incompatible with Mamba-based"),
    "a loss that its code does not make": (
        "deepseek_v3",
        {"router_aux_loss": 0.1},
        "its own code makes no such loss",
    ),
    "bf16 beside fp32 in its code": (
        "dbrx",
        {"precision": "bf16"},
        "cannot be used in bf16: its own code mixes it with fp32",
    ),
    "logits with a cap of their own": ("xlstm", {}, "treats its logits in a way"),
}


def checked(bench: Bench, sdpo: Sdpo, folder: Path, name: str, training: Values, **own: str):
    """`sdpo check` of a small model of this name with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(bench.recipe["model"]["name_or_path"])
    model = folder / "model"
    words = {"vocab_size": len(tokenizer)}
    if name == "gemma4_text":
        words["vocab_size_per_layer_input"] = len(tokenizer)
    small_model(name, **words).save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = folder / "mine.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    attention = "eager" if name in ("xlstm", "deepseek_v4") else "sdpa"
    recipe = bench.write(
        {
            "data": {"max_length": 64, "sources": [{"name": "mine", "path": str(rows)}]},
            "partition": {"strategy": "natural"},
            "steps": [],
            "model": {"name_or_path": str(model), "attention": attention, **own},
            "training": bench.recipe.get("training", {}) | training,
        }
    )
    return sdpo("check", recipe)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_could_not_train_or_publish_is_refused(case, bench, sdpo, tmp_path) -> None:
    name, training, message = REFUSED[case]
    called = checked(bench, sdpo, tmp_path, name, training)
    assert called.code == 2, called.told
    assert message in " ".join(called.err.split())


def test_a_base_that_has_no_layers_to_hold_is_refused(bench, sdpo, tmp_path) -> None:
    called = checked(bench, sdpo, tmp_path, "gpt2", {"lora_r": 2}, base_precision="bf16")
    assert called.code == 2, called.told
    assert "has no linear layers of torch's own" in " ".join(called.err.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_a_configuration_of_another_shape_passes(name, bench, sdpo, tmp_path) -> None:
    called = checked(bench, sdpo, tmp_path, name, {})
    assert called.code == 0, called.told
    assert "in all" in called.out
