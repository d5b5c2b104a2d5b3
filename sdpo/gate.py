"""The gate before the first optimizer step: policy and cached reference must agree.

With reference and initial target the same model, every log-prob the policy gives now must be the
one in the cache, whatever beta and objective. A stale cache, a wrong adapter, another dtype or
template shows here, before money is spent.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sdpo.errors import GateError
from sdpo.objectives.losses import loss_at_reference
from sdpo.tasks import PreferenceTask
from sdpo.trainer import Trainer

RANDOM_ROWS = 32


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate saw; ``loss`` is that of the first global batch before any update.

    ``expected_loss`` is None where the objective's loss at the reference differs from pair to pair.
    """

    loss: float
    expected_loss: float | None
    max_abs_difference_nats: float
    tolerance_nats: float
    pairs: int


def tolerance(reference: np.ndarray, scored: np.ndarray, *, precision: str) -> np.ndarray:
    """Allowed ``|policy - reference|`` in nats: rounding of sums over ``scored`` tokens."""
    if precision == "bf16":
        return np.asarray(0.05 * np.sqrt(scored))
    return np.asarray(1e-6 * np.abs(reference) + 1e-3)


@torch.no_grad()
def check(
    trainer: Trainer, task: PreferenceTask, *, first_batch: np.ndarray, precision: str, seed: int
) -> GateResult:
    """Compare on the first global batch and 32 random rows.

    Every rank does the whole comparison: it is small, and needs no talk between ranks.

    Raises:
        GateError: a pair differs by more than the tolerance; the message has the numbers.
    """
    others = np.setdiff1d(np.arange(len(task.ids)), first_batch)
    drawn = np.random.default_rng([seed, 1]).permutation(others)[:RANDOM_ROWS]
    rows = np.concatenate([first_batch, drawn])
    trainer.scorer.eval()
    policy = np.stack([_both_sides(trainer, task, row) for row in rows])
    reference = task.reference[rows]
    scored = np.array([[len(task.chosen[i]), len(task.rejected[i])] for i in rows])
    difference = np.abs(policy - reference)
    allowed = tolerance(reference, scored, precision=precision)
    before = torch.from_numpy(policy[: len(first_batch)].T.reshape(-1).copy())
    losses = task.losses(before, first_batch).loss
    result = GateResult(
        loss=float(losses.double().mean()),
        expected_loss=loss_at_reference(task.objective, task.settings),
        max_abs_difference_nats=float(difference.max()),
        tolerance_nats=float(allowed.flat[int(np.argmax(difference - allowed))]),
        pairs=len(rows),
    )
    worst = int(np.argmax((difference - allowed).max(axis=1)))
    if not (difference[worst] <= allowed[worst]).all():
        raise GateError(
            "policy and cached reference log-probs disagree before the first optimizer step. Pair "
            f"{task.ids[int(rows[worst])]} has (chosen, rejected) {policy[worst].tolist()} now "
            f"and {reference[worst].tolist()} in the cache; {allowed[worst].tolist()} nats are "
            "allowed. The cached values were made with another model, precision or template: "
            "remove the cache folder and run again"
        )
    return result


def _both_sides(trainer: Trainer, task: PreferenceTask, row: int) -> np.ndarray:
    logps: np.ndarray = trainer.logps(task, np.array([row])).cpu().numpy()
    return logps
