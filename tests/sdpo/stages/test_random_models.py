"""Two steps of models that would be wrong without a word: each starts at ln 2, or is refused."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from sdpo.config import TrainingConfig
from sdpo.errors import ModelError
from sdpo.inputs import demo
from sdpo.model.sequence_scorer import TokenSequence

from ..training_helpers.models import hf_logps
from ..training_helpers.runs import PreparedRun, prepare_run

TRAINING = TrainingConfig(learning_rate=1e-3, batch_size=5, precision="fp32")
BORDER = 24
MODELS = {
    "mixtral": {"router_jitter_noise": 0.1, "num_local_experts": 4},
    "falcon": {
        "alibi": False,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "new_decoder_architecture": True,
    },
    "phi3": {
        "pad_token_id": 0,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": BORDER,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [1.5, 3.0, 6.0, 12.0],
            "original_max_position_embeddings": BORDER,
        },
    },
    "phimoe": {"num_local_experts": 4},
}


def prepared(kind: str, root) -> PreparedRun:
    """A run of 5 + 5 pairs with a small random model that has the demo's tokenizer."""
    source = demo.materialise("demo:tiny-llama", root / "demo")
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(source)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(3)
    settings = sizes | heads | ids | MODELS[kind]
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return prepare_run(root, pairs={0: 2, 1: 5, 2: 5}, model=root / "model")


@pytest.mark.parametrize("kind", ["mixtral", "falcon", "phi3"])
def test_both_steps_start_at_ln_2_from_the_models_own_log_probs(kind, tmp_path):
    run = prepared(kind, tmp_path)
    for step in (1, 2):
        run.run_step(step, TRAINING)
        assert run.metrics(step)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        source = run.model if step == 1 else run.folder.model(step - 1)
        own = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        scored = pq.read_table(run.folder.step(step) / "reference.parquet")
        rows = {row["pair_id"]: row["token_row"] for row in run.rows_of(step)}
        assert len(scored) == len(rows) == 5
        lengths = []
        for row in scored.to_pylist():
            pair = run.token_file().row(rows[row["pair_id"]])
            found, expected = [], []
            for name, side in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
                ids = np.concatenate([pair.prompt_ids, side])
                lengths.append(len(ids))
                found.append(row[f"reference_{name}_logps"])
                with torch.no_grad():
                    expected.append(float(hf_logps(own, TokenSequence(ids, len(pair.prompt_ids)))))
            np.testing.assert_allclose(found, expected, atol=2e-4)
        assert kind != "phi3" or min(lengths) <= BORDER < max(lengths)


def test_a_model_that_stays_random_is_refused_before_anything_is_scored(tmp_path):
    run = prepared("phimoe", tmp_path)
    with pytest.raises(ModelError, match="another model in training"):
        run.run_step(1, TRAINING)
    assert not list(run.cache.rglob("*.parquet"))
