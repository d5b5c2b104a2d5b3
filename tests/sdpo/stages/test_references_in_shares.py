"""References of models that ranks hold in shares, where others had weights of size 0, or none yet.

Under ZeRO-3 TRL asked a reference whose weights were shares (trl#361, trl#669: "'weight' must be
2-D"), one that was copied from a policy in shares (trl#827), or the policy before the engine held
it (trl#2985); under FSDP2 one that was on another device still (trl#6470). Here references are
those of float64, by the model's own logits, of S and of what a step in shares has published.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forked_ranks import forked_ranks

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.model.policy import load_policy
from sdpo.model.sequence_scorer import TokenSequence
from sdpo.processes.supervisor import run_stage

from ..training_helpers.models import RecordedEvents, double, hf_logps
from ..training_helpers.ranks import RANKS, on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run, skip_without

TRAINING = TrainingConfig(
    beta=0.2, learning_rate=1e-2, batch_size=4, epochs=2, seed=3, precision="fp32"
)
STRATEGIES = ["fsdp2", "deepspeed_zero3"]


def launch_of(strategy: str) -> LaunchConfig:
    skip_without(strategy)
    return LaunchConfig(processes=RANKS, strategy=strategy, device="cpu", threads=1)


@pytest.fixture(scope="module", params=STRATEGIES)
def run(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[PreparedRun]:
    """Two steps in shares."""
    launch = launch_of(request.param)
    run = prepare_run(tmp_path_factory.mktemp("run"), pairs={0: 3, 1: 7, 2: 5})
    with forked_ranks():
        for step in (1, 2):
            spec = run.spec(step, TRAINING, launch=launch, measure_output=True)
            run_stage(spec, listen=lambda event: None)
    return run


def own_logps(folder: Path, run: PreparedRun, pair_ids: list[str]) -> np.ndarray:
    """Log-probs of pairs under the model in ``folder`` in float64, ``[pairs, 2]``."""
    policy = double(load_policy(folder, model=ModelConfig(name_or_path=str(folder))))
    tokens = run.token_file()
    place = {pair_id: row for row, pair_id in enumerate(tokens.pair_ids)}
    found = []
    for pair in (tokens.row(place[pair_id]) for pair_id in pair_ids):
        sides = [
            TokenSequence(np.concatenate([pair.prompt_ids, side]), len(pair.prompt_ids))
            for side in (pair.chosen_ids, pair.rejected_ids)
        ]
        with torch.no_grad():
            found.append([float(hf_logps(policy, side)) for side in sides])
    return np.array(found)


@pytest.mark.parametrize("step", [1, 2])
def test_a_reference_in_shares_is_that_of_float64(run, step):
    """The one of step 2 was scored by the ranks that had trained it, and is that of its files."""
    table = pq.read_table(run.folder.step(step) / "reference.parquet").to_pandas()
    assert len(table) == (7, 5)[step - 1]
    folder = run.model if step == 1 else run.folder.model(1)
    expected = own_logps(folder, run, table["pair_id"].tolist())
    found = table[["reference_chosen_logps", "reference_rejected_logps"]].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    record = run.record(step)
    computed = (7, 0)[step - 1]
    assert record["scored_rows"] == {"computed": computed, "cached": len(table) - computed}
    assert record["gate"]["max_abs_difference_nats"] < 1e-3


def test_the_model_of_step_1_has_other_log_probs_than_s(run):
    """Else a reference of the wrong model would pass."""
    pair_ids = [row["pair_id"] for row in run.rows_of(2)]
    apart = own_logps(run.folder.model(1), run, pair_ids) - own_logps(run.model, run, pair_ids)
    assert np.abs(apart).min() > 0.01


def sizes(rank: int, tell, run: PreparedRun, strategy: str) -> None:
    """Tells how many numbers of its weights a rank has while nothing computes."""
    from sdpo.stages.session import open_session

    launch = LaunchConfig(processes=RANKS, strategy=strategy, device="cpu", threads=1)
    session = open_session(run.spec(1, TRAINING, launch=launch), RecordedEvents())
    session.engine()
    session.reshard()
    held = {
        name: (p.to_local() if hasattr(p, "to_local") else p).numel()
        for name, p in session.policy.named_parameters()
    }
    session.wait()
    tell(held)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_are_shares_while_nothing_computes(strategy, tmp_path):
    """What the references above were computed from was not there whole, as in those reports."""
    launch_of(strategy)
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    policy = load_policy(run.model, model=ModelConfig(name_or_path=str(run.model)))
    whole = {name: p.numel() for name, p in policy.named_parameters()}
    held = on_ranks(sizes, run, strategy)
    for name, count in whole.items():
        of_ranks = [each[name] for each in held]
        assert of_ranks == [0, 0] if strategy == "deepspeed_zero3" else sum(of_ranks) == count, name
