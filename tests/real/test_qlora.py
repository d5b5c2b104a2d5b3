"""Two steps of QLoRA on a real model of 135 million parameters: what docs/adapters.md promises.

The model is SmolLM2-135M-Instruct in the folder that SDPO_SMOLLM2 names; without it, or without
bitsandbytes, or without the data beside the project, the test is skipped.
"""

import os
from pathlib import Path

import pytest
import torch
from bench import Outcome
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sdpo.chain.run_chain import run_chain
from sdpo.config import ModelConfig
from sdpo.config.load import make_config
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import load_policy

PREFERENCES = Path(__file__).resolve().parents[3] / "shared" / "data" / "preferences"
MODEL = Path(os.environ.get("SDPO_SMOLLM2", "nowhere"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PREFERENCES.is_dir(), reason="needs the data beside the project"),
    pytest.mark.skipif(not MODEL.is_dir(), reason="SDPO_SMOLLM2 names no model folder"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    names = {"orca": "orca_dpo_validation.jsonl", "ultrafeedback": "ultrafeedback_train.jsonl"}
    config = make_config(
        {
            "name": "qlora",
            "model": {"name_or_path": str(MODEL), "base_precision": "nf4"},
            "data": {
                "sources": [{"name": n, "path": str(PREFERENCES / f)} for n, f in names.items()],
                "limit": 6,
                "max_length": 160,
            },
            "training": {"lora_r": 8, "learning_rate": 1e-4, "batch_size": 4, "max_steps": 2},
            "launch": {"device": "cpu", "threads": 1},
            "probe": {"completions": 0, "kl_prompts": 0, "bootstrap_resamples": 100},
            "store": {"runs_dir": str(tmp_path_factory.mktemp("qlora") / "runs")},
        }
    )
    return Outcome(run_chain(config), [])


def test_both_steps_pass_the_gate_and_cost_megabytes(chain: Outcome) -> None:
    base = model_digest(MODEL, precision="nf4")
    first, second = chain.record("step-1"), chain.record("step-2")
    assert first["inputs"]["reference"] == first["inputs"]["target"] == base != model_digest(MODEL)
    assert second["inputs"]["reference"] == first["outputs"]["model"]
    for record in (first, second):
        assert record["gate"]["max_abs_difference_nats"] < 1e-2
    assert second["scored_rows"]["computed"] == 0
    assert 0 < first["base_rounding"]["nats_per_token"] < 1
    for step in (1, 2):
        size = sum(p.stat().st_size for p in chain.run.model(step).iterdir())
        assert size < 20e6 < (MODEL / "model.safetensors").stat().st_size / 20


def test_plain_peft_over_bitsandbytes_gives_the_same_log_probs(chain: Outcome) -> None:
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        MODEL, quantization_config=quantised, dtype=torch.float32, device_map={"": "cpu"}
    )
    # In eval mode bitsandbytes multiplies in bf16 on a CPU that can, whatever the dtype asked for.
    theirs = PeftModel.from_pretrained(theirs, chain.run.model(2)).train()
    ours = load_policy(chain.run.model(2), model=ModelConfig(base_precision="nf4")).eval()
    ids = torch.arange(100, 164)[None]
    with torch.no_grad():
        logps = [
            model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
            for model in (theirs, ours)
        ]
    assert float(logps[1]) == pytest.approx(float(logps[0]), abs=2e-2)
