"""Why M_t is published in fp32: at the paper's learning rate a bf16 copy would lose the step."""

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.events import EventWriter
from sdpo.inputs import demo
from sdpo.model.policy import load_policy
from sdpo.scoring.score_rows import score_rows
from sdpo.store.logp_cache import LogpCache

from ..training_helpers.models import make_scorer
from ..training_helpers.runs import prepare_run

STEPS, BATCH = 20, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """20 optimizer steps at 5e-7 from weights on bf16's grid, as models are released."""
    root = tmp_path_factory.mktemp("run")
    model = demo.materialise("demo:tiny-llama", root / "demo")
    weights = load_file(model / "model.safetensors")
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    save_file(rounded, model / "model.safetensors", metadata={"format": "pt"})
    prepared = prepare_run(root, pairs={0: 8, 1: STEPS * BATCH, 2: 32}, model=model)
    training = TrainingConfig(batch_size=BATCH, precision="fp32")
    assert training.learning_rate == 5e-7, "the paper's"
    prepared.run_step(1, training, measure_input=True, measure_output=True)
    assert prepared.record(1)["optimizer_steps"] == STEPS
    return prepared


@pytest.fixture
def models(run):
    """M_0 and M_1, read from their files."""
    folders = (run.model, run.folder.model(1))
    return [load_policy(folder, model=ModelConfig()) for folder in folders]


@pytest.fixture
def gamma(run, tmp_path_factory):
    """``gamma(policy)``: of every pair of D_2, scored now with an empty cache."""

    def score(policy) -> np.ndarray:
        rows = [row["token_row"] for row in run.rows_of(2)]
        scored = score_rows(
            make_scorer(policy, layout="shared"),
            run.token_file(),
            rows,
            cache=LogpCache(tmp_path_factory.mktemp("cache"), {}),
            events=EventWriter(None),
            phase="score D_2",
        )
        return scored.logps.chosen.astype(np.float64) - scored.logps.rejected

    return score


def measured_gamma(run, name: str) -> np.ndarray:
    """Of the same pairs, as the step's stage measured the model it had in memory."""
    table = pq.read_table(run.folder.probes / f"{name}.parquet").to_pylist()
    probe = {row["pair_id"]: row["chosen_logps"] - row["rejected_logps"] for row in table}
    return np.array([probe[row["pair_id"]] for row in run.rows_of(2)])


def moved_share(before, after) -> float:
    """Share of the weights that differ."""
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


@torch.no_grad()
def through_bf16(policy):
    """The same model with its weights rounded to bf16 and back."""
    rounded = copy.deepcopy(policy)
    for parameter in rounded.parameters():
        parameter.copy_(parameter.bfloat16())
    return rounded


def test_the_published_model_is_fp32_and_nearly_all_its_weights_have_moved(run, models):
    tensors = load_file(run.folder.model(1) / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert moved_share(*models) > 0.999


def test_the_change_of_gamma_survives_the_handoff_exactly(run, models, gamma):
    for policy, name in zip(models, ("M_0", "M_1"), strict=True):
        np.testing.assert_array_equal(gamma(policy), measured_gamma(run, name))
    change = measured_gamma(run, "M_1") - measured_gamma(run, "M_0")
    assert change.mean() > 0.01, "20 steps at 5e-7 are to be seen in nats"


def test_bf16_would_have_lost_nearly_all_of_it(models, gamma):
    before, after = models
    low = through_bf16(after)
    assert moved_share(before, through_bf16(before)) == 0, "the start is on bf16's grid"
    assert moved_share(before, low) < 0.05
    kept = (gamma(low) - gamma(before)).mean() / (gamma(after) - gamma(before)).mean()
    assert kept < 0.15, "what is left comes from the few weights near 0, where the grid is finer"
