"""A training script for TRL is read as text: what it sets is found, and nothing in it runs."""

from pathlib import Path

import pytest

from sdpo.errors import ConfigError
from sdpo.migration import Migrated, from_trl

IMPORTS = """
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer
"""


def made(tmp_path: Path, script: str, *overrides: str) -> Migrated:
    path = tmp_path / "train.py"
    path.write_text(IMPORTS + script)
    return from_trl(path, overrides=overrides)


WHOLE = """
raise SystemExit("a script that is run ends here")
NAME = "some/model"
BATCH: int = 2
def main():
    model = AutoModelForCausalLM.from_pretrained(
        NAME, revision="v3", dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    data = load_dataset("some/data", "easy")["train_prefs"]
    data = data.map(lambda row: row)
    options = {"learning_rate": 5e-7 * 2, "beta": 0.05}
    args = DPOConfig("out/my run", per_device_train_batch_size=BATCH, loss_type="ipo", **options)
    args.max_length = 256
    lora = LoraConfig(r=32, target_modules=["q_proj", "v_proj"], use_rslora=True)
    trainer = DPOTrainer(model, args=args, train_dataset=data, peft_config=lora)
    trainer.train()
    trainer.save_model("out/final")
"""


def test_a_whole_script_becomes_a_recipe(tmp_path):
    found = made(tmp_path, WHOLE)
    config, training = found.config, found.config.training
    assert config.name == "my-run"
    assert (config.model.name_or_path, config.model.revision) == ("some/model", "v3")
    assert config.model.base_precision == "nf4"
    (source,) = config.data.sources
    assert (source.path, source.subset, source.split) == ("some/data", "easy", "train_prefs")
    assert config.data.max_length == 256
    assert (training.objective, training.beta) == ("ipo", 0.05)
    assert training.learning_rate == pytest.approx(1e-6)
    assert training.batch_size == 2
    # Defaults of peft, which are not those of TRL's command line.
    assert (training.lora_r, training.lora_alpha, training.lora_dropout) == (32, 8, 0.0)
    assert training.lora_target_modules == ["q_proj", "v_proj"]
    assert training.lora_rslora
    told = " ".join([*found.notes.absent, *found.notes.differs])
    assert "map" in told
    assert "output_dir: out/my run; save_model: out/final: " in told
    assert "runs/my-run/step-1/model" in told
    assert "torch.bfloat16" in told


def test_a_reference_of_another_model_is_one_here(tmp_path):
    found = made(
        tmp_path,
        "DPOTrainer(model='a/b', ref_model='c/d', args=DPOConfig(), train_dataset=None)",
    ).config.training
    assert (found.reference, found.reference_model) == ("model", "c/d")
    same = made(tmp_path, "DPOTrainer(model='a/b', ref_model='a/b', args=DPOConfig())").config
    assert same.training.reference == "previous"


def test_what_the_script_computes_has_to_be_given(tmp_path):
    script = (
        "DPOConfig(beta=options.beta, max_length=int(2 ** 10), learning_rate=LR)\nLR = 1\nLR = 2"
    )
    with pytest.raises(ConfigError) as error:
        made(tmp_path, script)
    assert "beta (line 7: options.beta): --set training.beta=…" in str(error.value)
    assert "--set data.max_length=" in str(error.value)
    assert "--set training.learning_rate=" in str(error.value)
    given = ("training.beta=0.3", "data.max_length=99", "training.learning_rate=1e-6")
    assert made(tmp_path, script, *given).config.training.beta == 0.3


def test_what_a_recipe_still_needs_is_said(tmp_path):
    notes = made(tmp_path, "DPOConfig()\nDPOTrainer(model=build(), train_dataset=rows())").notes
    assert [each.partition(":")[0] for each in notes.to_fill_in] == [
        "model.name_or_path",
        "data.sources",
    ]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("parser = TrlParser((DPOConfig,))", "no call of DPOConfig.*--config"),
        ("DPOConfig()\nDPOConfig()", "calls DPOConfig on lines 7, 8"),
        ("DPOConfig(**options())", r"line 7: \*\*options\(\) is computed"),
        ("DPOConfig(", r"is not Python \(line 7\)"),
        ("def f(beta):\n    return DPOConfig(beta=beta)", "computes"),
        ("DPOConfig(loss_type='aot')", "no counterpart"),
        ("x = " + "(" * 300 + ")" * 300, "is not Python"),
    ],
)
def test_a_script_that_does_not_tell_is_refused(tmp_path, script, message):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, script)
