"""The gate before the first optimizer step: cached reference and model must agree.

With reference and initial target the same model, every log-prob the policy gives now must be the
one in the cache, whatever beta and objective. A stale cache, a wrong adapter, another dtype or
template shows here, before money is spent. Where the reference is another model, the policy cannot
say whether the cache is stale: then a sample of the cache is compared with the reference itself,
before it makes room for the target (:func:`check_cache`), and what that found is the gate's.

The loss before any update is recorded beside what it is where policy and reference agree (ln 2 for
DPO). With S as target and M_{t-1} as reference it is above that (sDPO, arXiv 2403.19270, figure 3).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch

from sdpo.cache import RowLogps
from sdpo.errors import GateError
from sdpo.lanes import in_lanes
from sdpo.layouts import LAYOUTS, PromptGroup
from sdpo.objectives.losses import loss_at_reference
from sdpo.score import Scorer
from sdpo.tasks import PreferenceTask
from sdpo.tokens.store import TokenFile
from sdpo.trainer import Trainer

RANDOM_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a comparison of cached log-probs with the model found."""

    max_abs_difference_nats: float
    tolerance_nats: float
    pairs: int

    def numbers(self) -> dict[str, float]:
        """As plain numbers."""
        return asdict(self)


POLICY: Literal["policy"] = "policy"
"""Reference and target are one model: the policy is compared with the cache."""
Compared = Agreement | Literal["policy"]


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate saw; ``loss`` is that of the first global batch before any update.

    ``expected_loss`` is its value where policy and reference agree, None where that differs from
    pair to pair; ``excess_loss`` how much the loss is above it. ``compared``: what the cached
    log-probs were compared with, the policy or the reference itself.
    """

    loss: float
    expected_loss: float | None
    max_abs_difference_nats: float
    tolerance_nats: float
    pairs: int
    excess_loss: float | None = None
    compared: str = POLICY

    @property
    def agreement(self) -> Agreement:
        """The comparison alone."""
        return Agreement(
            max_abs_difference_nats=self.max_abs_difference_nats,
            tolerance_nats=self.tolerance_nats,
            pairs=self.pairs,
        )


def tolerance(reference: np.ndarray, scored: np.ndarray, *, precision: str) -> np.ndarray:
    """Allowed ``|policy - reference|`` in nats: rounding of sums over ``scored`` tokens."""
    if precision == "bf16":
        return np.asarray(0.05 * np.sqrt(scored))
    return np.asarray(1e-6 * np.abs(reference) + 1e-3)


def sample_rows(first_batch: np.ndarray, *, cached: np.ndarray, seed: int) -> np.ndarray:
    """The first global batch, and 32 random ones of the others that were ``cached``.

    A row that the same process computed a moment ago is not stale: what can be wrong between
    scoring and training shows in the first batch.
    """
    others = np.setdiff1d(cached, first_batch)
    drawn = np.random.default_rng([seed, 1]).permutation(others)[:RANDOM_ROWS]
    return np.concatenate([first_batch, drawn])


@torch.no_grad()
def check(
    trainer: Trainer,
    task: PreferenceTask,
    *,
    first_batch: np.ndarray,
    precision: str,
    seed: int,
    cached: np.ndarray,
    compare: Compared = POLICY,
) -> GateResult:
    """Compare on the first global batch and 32 random rows, and take the loss of the former.

    ``cached``: the items whose log-probs were in the cache before; the random ones are of these.
    ``compare``: with the policy where it is the reference; else what the comparison with the
    reference found. Every rank does the whole comparison: it is small, and needs no talk between
    ranks.

    Raises:
        GateError: a pair differs by more than the tolerance; the message has the numbers.
    """
    rows = first_batch
    if compare == POLICY:
        rows = sample_rows(first_batch, cached=cached, seed=seed)
    trainer.scorer.eval()
    policy = np.stack(
        list(in_lanes(lambda row: _both_sides(trainer, task, row), rows, lanes=trainer.lanes))
    )
    if isinstance(compare, Agreement):
        found = compare
    else:
        scored = np.array([[len(task.chosen[i]), len(task.rejected[i])] for i in rows])
        names = [task.ids[int(row)] for row in rows]
        found = compare_rows(policy, task.reference[rows], scored, names=names, precision=precision)
    before = torch.from_numpy(policy[: len(first_batch)].T.reshape(-1).copy())
    loss = float(task.losses(before, first_batch).loss.double().mean())
    expected = loss_at_reference(task.objective, task.settings)
    return GateResult(
        loss=loss,
        expected_loss=expected,
        max_abs_difference_nats=found.max_abs_difference_nats,
        tolerance_nats=found.tolerance_nats,
        pairs=found.pairs,
        excess_loss=None if expected is None else loss - expected,
        compared="reference" if isinstance(compare, Agreement) else POLICY,
    )


@torch.no_grad()
def check_cache(
    scorer: Scorer,
    tokens: TokenFile,
    rows: Sequence[int],
    cached: RowLogps,
    *,
    items: np.ndarray,
    precision: str,
    name: str,
) -> Agreement:
    """Compare what is cached of ``rows``, those at ``items``, with model ``name``, in memory.

    Raises:
        GateError: a pair differs by more than the tolerance.
    """
    scorer.module.eval()
    pairs = [tokens.row(rows[int(item)]) for item in items]
    values = np.stack([cached.chosen, cached.rejected], axis=1)[items]
    now = np.empty_like(values)
    device, collate = scorer.accelerator.device, LAYOUTS[scorer.layout].collate
    for index, pair in enumerate(pairs):
        group = PromptGroup(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids))
        batch = collate([group], pad_token_id=scorer.pad_token_id, device=device.type)
        now[index] = scorer.module(batch.to(device)).float().cpu().numpy()
    scored = np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs])
    names = [pair.pair_id for pair in pairs]
    return compare_rows(now, values, scored, names=names, precision=precision, who=name)


def compare_rows(
    now: np.ndarray,
    cached: np.ndarray,
    scored: np.ndarray,
    *,
    names: Sequence[str],
    precision: str,
    who: str = "policy",
) -> Agreement:
    """Refuse log-probs ``now`` that are not those ``cached``; all ``[pairs, 2]``, in nats.

    Raises:
        GateError: a pair differs by more than the tolerance; the message has the worst.
    """
    difference = np.abs(now - cached)
    allowed = tolerance(cached, scored, precision=precision)
    worst = int(np.argmax((difference - allowed).max(axis=1)))
    if not (difference[worst] <= allowed[worst]).all():
        raise GateError(
            f"{who} and cached reference log-probs disagree before the first optimizer step. Pair "
            f"{names[worst]} has (chosen, rejected) {now[worst].tolist()} now "
            f"and {cached[worst].tolist()} in the cache; {allowed[worst].tolist()} nats are "
            "allowed. The cached values were made with another model, precision or template: "
            "remove the cache folder and run again"
        )
    return Agreement(
        max_abs_difference_nats=float(difference.max()),
        tolerance_nats=float(allowed.flat[int(np.argmax(difference - allowed))]),
        pairs=len(now),
    )


def _both_sides(trainer: Trainer, task: PreferenceTask, row: int) -> np.ndarray:
    logps: np.ndarray = trainer.logps(task, np.array([row])).cpu().numpy()
    return logps
