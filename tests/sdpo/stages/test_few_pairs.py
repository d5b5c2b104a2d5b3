"""Processes that have no pair: in a batch, in a step, in the reserve. The step is that of one."""

from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from forked_ranks import forked_ranks

from sdpo.config import EvaluationConfig, LaunchConfig, ProbeConfig, TrainingConfig
from sdpo.identity.model_digest import model_digest
from sdpo.processes.supervisor import run_stage

from ..training_helpers.runs import LAUNCH, PreparedRun, prepare_run, skip_without

TRAINING = TrainingConfig(
    beta=0.2, learning_rate=1e-2, batch_size=1, epochs=3, seed=3, precision="fp32"
)
FEW = {
    "a batch of one pair": ({0: 3, 1: 4, 2: 3}, TRAINING),
    "a step of one pair, a reserve of one": (
        {0: 1, 1: 1, 2: 1},
        TRAINING.model_copy(update={"batch_size": 8}),
    ),
}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _as_forks() -> Iterator[None]:
    with forked_ranks():
        yield


def taken(folder, few: str, launch: LaunchConfig) -> PreparedRun:
    """Step 1, which ends with the references of step 2."""
    pairs, training = FEW[few]
    run = prepare_run(folder, pairs=pairs)
    spec = run.spec(
        1,
        training,
        launch=launch,
        measure_input=True,
        measure_output=True,
        evaluation=EvaluationConfig(every=1),
        probe=ProbeConfig(completions=1, completion_tokens=4),
    )
    run_stage(spec, listen=lambda event: None)
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, PreparedRun]:
    """The steps in one process."""
    return {few: taken(tmp_path_factory.mktemp("alone"), few, LAUNCH) for few in FEW}


@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize(
    ("strategy", "processes"),
    [
        ("ddp", 2),
        ("fsdp2", 3),
        pytest.param("fsdp2", 2, marks=SLOW),
        pytest.param("ddp", 3, marks=SLOW),
        pytest.param("deepspeed_zero3", 2, marks=SLOW),
        pytest.param("deepspeed_zero2", 3, marks=SLOW),
        pytest.param("deepspeed_zero1", 2, marks=SLOW),
    ],
)
def test_processes_without_a_pair_change_nothing(alone, tmp_path, few, strategy, processes):
    skip_without(strategy)
    launch = LaunchConfig(processes=processes, strategy=strategy, device="cpu", threads=1)
    run, one = taken(tmp_path, few, launch), alone[few]
    curve, expected = run.metrics(1), one.metrics(1)
    assert len(curve) == len(expected)
    for line, other in zip(curve, expected, strict=True):
        for name in {"loss", "eval_loss", "grad_norm", "rewards/margins"} & set(other):
            assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    losses = [line["loss"] for line in expected if "loss" in line]
    assert max(losses) - min(losses) > 0.01, "the model learns something"
    assert run.record(1)["scored_rows"] == one.record(1)["scored_rows"]
    assert run.record(1)["outputs"]["model"] == model_digest(run.folder.model(1))
    rows = [pq.read_table(r.folder.probes / "M_0.parquet") for r in (run, one)]
    assert rows[0]["pair_id"].equals(rows[1]["pair_id"])
    for side in ("chosen_logps", "rejected_logps"):
        found, wanted = (table[side].to_numpy() for table in rows)
        assert found == pytest.approx(wanted, rel=1e-5), side
