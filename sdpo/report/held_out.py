"""Show each round from outside: what the models before and after it answer to reserved prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from sdpo.report.findings import FEWEST_PAIRS, Direction, direction
from sdpo.report.tables import Table, count, interval, model_name, number, percent
from sdpo.stats.bootstrap import Bounds, intervals
from sdpo.stats.text import distinct
from sdpo.store.held_out import Held, read_held
from sdpo.store.run_folder import RunFolder

RESAMPLES, SEED = 2000, 0
EVEN = 0.5
"""This share of prompts is won by a model that is as good as the other one."""
SHOWN = 5
"""So many prompts of a round are shown with the answers."""
_LONGEST = 300


class _Answer(NamedTuple):
    prompt: str
    text: str
    tokens: int
    finished: bool
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSeen:
    """A round made M_``step`` of the model before; both answered the same prompts, in pairs.

    ``gain`` is the mean difference of their scores, ``won`` the share of prompts on which the
    later model's answer has the higher score, a tie as half, both with 95% intervals over prompts.
    """

    step: int
    source: str
    before: tuple[_Answer, ...]
    after: tuple[_Answer, ...]
    gain: float
    gain_bounds: Bounds
    won: float
    won_bounds: Bounds


def rounds_seen(run: RunFolder) -> list[RoundSeen]:
    """Return the rounds of a run whose models before and after have answered held-out prompts.

    Raises:
        IntegrityError: answers are not those that were written.
    """
    held = {(each.outputs.asked, each.model): each for each in read_held(run)}
    found = [
        _seen(before, after)
        for (asked, model), after in held.items()
        if (before := held.get((asked, model - 1)))
    ]
    return sorted(filter(None, found), key=lambda each: (each.step, each.source))


def _seen(before: Held, after: Held) -> RoundSeen | None:
    """Return what both answered and was scored; None where that is nothing."""
    first, second = _answers(before), _answers(after)
    keys = sorted(
        key
        for key in first.keys() & second.keys()
        if not np.isnan([first[key].score, second[key].score]).any()
    )
    if not keys:
        return None
    gains = np.array([second[key].score - first[key].score for key in keys])
    wins = (gains > 0) + 0.5 * (gains == 0)
    (gain, won) = intervals(
        np.stack([gains, wins], axis=1),
        np.array(keys, dtype=np.str_),
        resamples=RESAMPLES,
        seed=SEED,
    )
    return RoundSeen(
        step=after.model,
        source=after.outputs.source,
        before=tuple(first[key] for key in keys),
        after=tuple(second[key] for key in keys),
        gain=float(gains.mean()),
        gain_bounds=gain,
        won=float(wins.mean()),
        won_bounds=won,
    )


def _answers(held: Held) -> dict[str, _Answer]:
    rows = pq.read_table(held.table).to_pylist()
    return {
        row["prompt_key"]: _Answer(
            prompt="\n".join(turn["content"] for turn in row["prompt"]),
            text=row["text"],
            tokens=row["tokens"],
            finished=row["finished"],
            score=row["score"],
        )
        for row in rows
    }


def held_tables(run: RunFolder) -> list[Table]:
    """Return the tables of rounds seen from outside, and of some answers; none without rounds."""
    seen = rounds_seen(run)
    return [_summary(seen), _shown(seen)] if seen else []


def _summary(seen: Sequence[RoundSeen]) -> Table:
    return Table(
        title="Rounds on held-out prompts: the model before and the model after",
        columns=(
            *("Model", "Over", "Pairs of", "Prompts", "Score", "Gain", "Won"),
            *("Tokens", "Finished", "Distinct 2-grams"),
        ),
        rows=tuple(_row(each) for each in seen),
        text_columns=3,
        note="Reserved prompts, which no step has pairs of, answered once by each model and scored "
        "by the judge of the rounds. Won: share of prompts on which the answer of the model after "
        "has the higher score, a tie as half. 95% intervals resample prompts; fewer than "
        f"{FEWEST_PAIRS} give none. {' '.join(map(_told, seen))} The judge is the one that the "
        "models are trained to please: see the ranking accuracy on the reserve beside it.",
    )


_SCORES: dict[Direction, str] = {"rose": "the score rose", "fell": "the score fell"}
_WINS: dict[Direction, str] = {
    "rose": "it won more than half of the prompts",
    "fell": "it won less than half of the prompts",
}


def _told(each: RoundSeen) -> str:
    """Say what a round is shown to have done, and what it is not shown to have done."""
    prompts, even = len(each.before), (None if b is None else b - EVEN for b in each.won_bounds)
    score = _SCORES.get(
        direction(*each.gain_bounds, pairs=prompts), "no change of the score is shown"
    )
    wins = _WINS.get(
        direction(*even, pairs=prompts), "that it won more or less than half is not shown"
    )
    return f"{model_name(each.step)} over {model_name(each.step - 1)}: {score}; {wins}."


def _row(each: RoundSeen) -> tuple[str, ...]:
    few = len(each.before) < FEWEST_PAIRS
    gain, won = ((None, None), (None, None)) if few else (each.gain_bounds, each.won_bounds)
    both = (each.before, each.after)
    return (
        model_name(each.step),
        model_name(each.step - 1),
        each.source,
        count(len(each.before)),
        _to(number(float(np.mean([a.score for a in of])), digits=3) for of in both),
        f"{number(each.gain, digits=3, signed=True)} {interval(*gain, digits=3)}",
        f"{number(each.won, digits=3)} {interval(*won, digits=3)}",
        _to(number(float(np.mean([a.tokens for a in of])), digits=1) for of in both),
        _to(percent(float(np.mean([a.finished for a in of]))) for of in both),
        _to(percent(distinct([a.text for a in of], 2)) for of in both),
    )


def _to(values: Iterator[str]) -> str:
    return " to ".join(values)


def _shown(seen: Sequence[RoundSeen]) -> Table:
    """Show the first prompts by their keys, which are as good as drawn."""
    rows = [
        (
            model_name(each.step),
            _short(before.prompt),
            _short(before.text),
            _short(after.text),
            number(before.score, digits=3),
            number(after.score, digits=3),
        )
        for each in seen
        for before, after in list(zip(each.before, each.after, strict=True))[:SHOWN]
    ]
    return Table(
        title="Answers to held-out prompts",
        columns=(
            *("Model", "Prompt", "The model before wrote", "The model wrote"),
            *("Score before", "Score"),
        ),
        rows=tuple(rows),
        text_columns=4,
    )


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
