"""Check, before the first optimizer step, that cached reference log-probs and model agree.

Where reference and initial target are one model, every log-prob the policy gives now must be the
one in the cache, whatever beta and objective. A stale cache, a wrong adapter, another dtype or
template shows here, before time is spent. Where the reference is another model, the policy cannot
tell whether the cache is stale: then a sample of the cache is compared with the reference itself
while that is in memory (:func:`check_cache`), and the gate takes over what that found.

The policy is asked twice: pair by pair, and as it will be trained, in train mode, in the layout,
the micro-batches and the lanes of the first global batch. Both must be the same: a model that draws
at random in training, or whose forward of one pair depends on its neighbours, is found here. In
bf16 both differ by rounding, whose size depends on model, kernels and device. It is measured here,
and what the cache may differ by follows from it.

Where reference and policy are one model, in fp32 on a CPU, what is cached was computed pair by
pair: if the pairs as they are trained agree with it, that one answer has shown both. If not, the
policy is asked pair by pair as well, and which of the two is wrong is said.

The loss before any update is recorded beside what it is where policy and reference agree (ln 2 for
DPO). With S as target and M_{t-1} as reference it is above that (sDPO, arXiv 2403.19270, figure 3).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch

from sdpo.errors import GateError
from sdpo.model.lanes import in_lanes
from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.objectives.losses import loss_at_reference
from sdpo.scoring.score_rows import Scorer
from sdpo.store.logp_cache import RowLogps
from sdpo.tokens.token_file import TokenFile
from sdpo.training.tasks import PreferenceTask
from sdpo.training.trainer import Trainer

RANDOM_ROWS = 32
_NOISE_PAIRS = 16
"""The rounding of bf16 is estimated from at least this many pairs, where the stage has so many."""
_LOW_FLOOR = 0.015
_LOW_MOST = 0.5
_LOW_SPARE = 4.0
_LOW_RMS_SPARE = 2.0
"""These bound what a log-prob in bf16 may differ by, in nats per root of its tokens.

In order: what the cache may always differ by; what pairs alone and as trained may differ by at
most; how many times the largest such difference, and how many times their root mean square, the
cache may differ by. On one H200 (torch 2.11) rounding was 0.17 at most, the median 0.03, in random
Llamas of 24 layers with logits as sharp as those of trained ones; 0.003 on a CPU.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """An agreement says what a comparison of cached log-probs with the model found."""

    max_abs_difference_nats: float
    tolerance_nats: float
    pairs: int

    def numbers(self) -> dict[str, float]:
        """Return the three as plain numbers, by name."""
        return asdict(self)


POLICY: Literal["policy"] = "policy"
"""Reference and target are one model: the gate compares the policy with the cache."""
Compared = Agreement | Literal["policy"]


@dataclass(frozen=True, slots=True)
class GateResult:
    """A result says what the gate saw; ``loss`` is the first global batch's before any update.

    ``expected_loss`` is its value where policy and reference agree, None where that differs from
    pair to pair; ``excess_loss`` is how much the loss is above it. ``compared`` says what the
    cached log-probs were compared with: the policy or the reference itself. ``as_trained_nats`` is
    the largest difference between log-probs of pairs as they are trained and of pairs alone, which
    are those cached where the pairs as they are trained agree with them.
    """

    loss: float
    expected_loss: float | None
    max_abs_difference_nats: float
    tolerance_nats: float
    pairs: int
    excess_loss: float | None = None
    compared: str = POLICY
    as_trained_nats: float = 0.0

    @property
    def agreement(self) -> Agreement:
        """Return the comparison alone."""
        return Agreement(
            max_abs_difference_nats=self.max_abs_difference_nats,
            tolerance_nats=self.tolerance_nats,
            pairs=self.pairs,
        )


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise is how pairs alone and together differ, in nats per root of a side's tokens."""

    largest: float
    root_mean_square: float


def tolerance(
    reference: np.ndarray, scored: np.ndarray, *, precision: str, noise: Noise | None = None
) -> np.ndarray:
    """Return the allowed ``|policy - reference|`` in nats: rounding of sums over ``scored`` tokens.

    ``noise`` is the measured rounding of bf16, None while it is being measured; fp32 needs none.
    """
    if precision == "bf16":
        spread = max(_LOW_FLOOR, _LOW_SPARE * noise.largest) if noise else _LOW_MOST
        return np.asarray(spread * np.sqrt(scored))
    return np.asarray(1e-6 * np.abs(reference) + 1e-3)


def sample_rows(first_batch: np.ndarray, *, cached: np.ndarray, seed: int) -> np.ndarray:
    """Return the first global batch, and 32 random rows of the others that were ``cached``.

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
    """Check the policy as it is trained, and the cache, and take the first global batch's loss.

    ``cached``: the items whose log-probs were in the cache before; 32 random ones are compared.
    ``compare``: the policy, where it is the reference; else what the comparison with the
    reference found. Every rank does the whole comparison: it is small, and needs no communication
    between ranks.

    Raises:
        GateError: a pair differs by more than is allowed; the message has the numbers.
    """
    rows = first_batch
    if compare == POLICY:
        rows = sample_rows(first_batch, cached=cached, seed=seed)
    policy, noise, apart = None, None, 0.0
    if compare == POLICY and precision == "fp32" and trainer.accelerator.device.type == "cpu":
        policy, apart = _as_cached(trainer, task, rows, of_batch=len(first_batch))
    if policy is None:
        policy = _alone(trainer, task, rows)
        noise, apart = _noise(trainer, task, first_batch, policy, precision=precision)
    if isinstance(compare, Agreement):
        found = compare
    else:
        found = compare_rows(
            policy,
            task.reference[rows],
            _scored(task, rows),
            names=[task.ids[int(row)] for row in rows],
            precision=precision,
            noise=noise,
        )
    before = torch.from_numpy(policy[: len(first_batch)].T.reshape(-1).copy())
    # Of the objective alone: the NLL beside it is another for every pair.
    alone = replace(task, rpo_alpha=0.0)
    loss = float(alone.losses(before, first_batch).loss.double().mean())
    expected = loss_at_reference(task.objective, task.settings)
    return GateResult(
        loss=loss,
        expected_loss=expected,
        max_abs_difference_nats=found.max_abs_difference_nats,
        tolerance_nats=found.tolerance_nats,
        pairs=found.pairs,
        excess_loss=None if expected is None else loss - expected,
        compared="reference" if isinstance(compare, Agreement) else POLICY,
        as_trained_nats=apart,
    )


@torch.no_grad()
def check_as_trained(
    trainer: Trainer, task: PreferenceTask, *, first_batch: np.ndarray, precision: str
) -> float:
    """Do the part of :func:`check` that needs no reference; return the largest difference in nats.

    Raises:
        GateError: pairs have other log-probs as they are trained than alone.
    """
    alone = _alone(trainer, task, first_batch)
    return _noise(trainer, task, first_batch, alone, precision=precision)[1]


def _as_cached(
    trainer: Trainer, task: PreferenceTask, rows: np.ndarray, *, of_batch: int
) -> tuple[np.ndarray | None, float]:
    """Return the log-probs of ``rows`` as they are trained, ``[rows, 2]``, and how far those of the
    first ``of_batch`` are from the cache at most, in nats.

    There are none where one of them is not what is cached of its pair alone.
    """
    parts = [part for part in np.split(rows, [of_batch]) if len(part)]
    trained = np.concatenate([trainer.logps_as_trained(task, part) for part in parts])
    cached = task.reference[rows]
    difference = np.abs(trained - cached)
    if not (difference <= tolerance(cached, _scored(task, rows), precision="fp32")).all():
        return None, 0.0
    return trained, float(difference[:of_batch].max())


def _alone(trainer: Trainer, task: PreferenceTask, rows: np.ndarray) -> np.ndarray:
    """Return the log-probs of ``rows``, each pair in a forward of its own, ``[rows, 2]``."""
    trainer.scorer.eval()
    found = in_lanes(lambda row: _both_sides(trainer, task, row), rows, lanes=trainer.lanes)
    return np.array(list(found), dtype=np.float32).reshape(-1, 2)


def _noise(
    trainer: Trainer,
    task: PreferenceTask,
    first_batch: np.ndarray,
    alone: np.ndarray,
    *,
    precision: str,
) -> tuple[Noise, float]:
    """Return how pairs as they are trained differ from pairs alone, and the largest difference.

    ``alone`` begins with the log-probs of ``first_batch``, ``[pairs, 2]``, in nats.
    """
    together = first_batch
    alone = alone[: len(first_batch)]
    if precision == "bf16" and len(first_batch) < _NOISE_PAIRS:
        others = np.setdiff1d(np.arange(len(task.ids)), first_batch)
        more = others[: _NOISE_PAIRS - len(first_batch)]
        together = np.concatenate([first_batch, more])
        alone = np.concatenate([alone, *(_both_sides(trainer, task, row)[None] for row in more)])
    trained = trainer.logps_as_trained(task, together)
    scored = _scored(task, together)
    difference = np.abs(trained - alone)
    allowed = tolerance(alone, scored, precision=precision)
    worst = int(np.argmax((difference - allowed).max(axis=1)))
    if not (difference[worst] <= allowed[worst]).all():
        raise GateError(
            f"pair {task.ids[int(together[worst])]} has log-probs (chosen, rejected) "
            f"{trained[worst].tolist()} as it is trained, in train mode beside others, and "
            f"{alone[worst].tolist()} alone; {allowed[worst].tolist()} nats are allowed. The model "
            "draws at random in training (a router's jitter, a dropout of its own), or what it "
            "gives a pair depends on its neighbours: its losses would be those of another model"
        )
    spread = difference / np.sqrt(scored)
    noise = Noise(float(spread.max()), float(np.sqrt(np.square(spread).mean())))
    return noise, float(difference.max())


def _scored(task: PreferenceTask, rows: np.ndarray) -> np.ndarray:
    """Return the tokens of both sides of ``rows``, int ``[rows, 2]``."""
    return np.array([[len(task.chosen[i]), len(task.rejected[i])] for i in rows])


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
    """Compare what is cached of ``rows``, those at ``items``, with the model ``name`` in memory.

    Raises:
        GateError: a pair differs by more than the tolerance.
    """
    scorer.module.eval()
    pairs = [tokens.row(rows[int(item)]) for item in items]
    values = np.stack([cached.chosen, cached.rejected], axis=1)[items]
    groups = [PromptGroup(p.prompt_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs]
    now = np.concatenate([_together(scorer, [group]) for group in groups])
    scored = np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs])
    noise = None
    if precision == "bf16":
        few = slice(0, _NOISE_PAIRS)
        spread = np.abs(_together(scorer, groups[few]) - now[few]) / np.sqrt(scored[few])
        noise = Noise(float(spread.max()), float(np.sqrt(np.square(spread).mean())))
    names = [pair.pair_id for pair in pairs]
    return compare_rows(
        now, values, scored, names=names, precision=precision, who=name, noise=noise
    )


def _together(scorer: Scorer, groups: Sequence[PromptGroup]) -> np.ndarray:
    """Return the log-probs of ``groups`` from one forward, fp32 ``[groups, 2]``."""
    device, collate = scorer.accelerator.device, LAYOUTS[scorer.layout].collate
    batch = collate(groups, pad_token_id=scorer.pad_token_id, device=device.type)
    logps: np.ndarray = scorer.module(batch.to(device)).float().cpu().numpy()
    return logps.reshape(-1, 2)


def compare_rows(
    now: np.ndarray,
    cached: np.ndarray,
    scored: np.ndarray,
    *,
    names: Sequence[str],
    precision: str,
    who: str = "policy",
    noise: Noise | None = None,
) -> Agreement:
    """Refuse log-probs ``now`` that are not those ``cached``; all ``[pairs, 2]``, in nats.

    ``noise``: in bf16, the rounding that was measured. Then all pairs together are compared as
    well: a stale cache is off a little everywhere, which rounding hides in any one pair.

    Raises:
        GateError: a pair differs by more than the tolerance; the message has the worst.
    """
    difference = np.abs(now - cached)
    allowed = tolerance(cached, scored, precision=precision, noise=noise)
    worst = int(np.argmax((difference - allowed).max(axis=1)))
    spread = float(np.sqrt(np.square(difference / np.sqrt(scored)).mean()))
    everywhere = (
        precision == "bf16"
        and noise is not None
        and spread > max(_LOW_FLOOR, _LOW_RMS_SPARE * noise.root_mean_square)
    )
    if everywhere or not (difference[worst] <= allowed[worst]).all():
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
