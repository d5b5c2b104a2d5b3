"""Make pairs from lists of answers to one prompt that are scored, ranked or given best first.

People publish UltraFeedback's ``completions`` (each with its ``overall_score``), Nectar's
``answers`` (each with its ``rank``), ``responses`` beside a list of ``scores`` or ``ratings``, or
distilabel's ``generations``. What says which answer is better is decided on the first row of a
source, and refused where more than one could be meant.

A list gives one of these: the best against the worst; the best against one drawn of the others, as
UltraFeedback was made binary; or every better one against every worse one.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from sdpo.config import ColumnsConfig
from sdpo.data.cells import NotText, listed
from sdpo.data.keys import draw_key
from sdpo.data.messages import is_message
from sdpo.data.prompts import Row, columns_of, has_path, lookup
from sdpo.data.winners import winner_column
from sdpo.errors import DataError
from sdpo.system.json_values import Cell

Pairing = Literal["best_worst", "best_random", "all"]
RankedBy = Literal["auto", "scores", "ranks", "order"]

_ANSWERS = (
    *("answers", "responses", "completions", "candidates", "generations", "response"),
    *("all_generated_responses", "generated_responses"),
)
_TEXTS = (
    *("answer", "response", "completion", "text", "content", "output", "generation"),
    *("messages", "message", "value"),
)
_SCORES = (
    *("scores", "ratings", "rewards", "overall_scores", "rm_scores", "all_rm_scores"),
    *("overall_score", "score", "rating", "reward"),
)
_MOST_SHOWN = 60
_RANKS = ("ranks", "rank", "rankings", "ranking")


class Unscored(NotText):
    """An answer of the list has nothing by which it could be better or worse."""

    reason = "no_score"


class OtherLength(NotText):
    """There are more or fewer scores than answers."""

    reason = "lists_differ"


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers say where a list of answers is, and by what they are ranked.

    ``path`` is the list's; ``by`` is the path of a list beside it, or (``inside``) within each
    answer; "" where their order is the ranking. ``text`` is the path within an answer; "" where it
    is found by itself.
    """

    path: str
    ranked_by: RankedBy
    by: str = ""
    inside: bool = False
    text: str = ""

    @property
    def beside(self) -> str:
        """Return the column of scores or ranks beside the list, or ""."""
        return "" if self.inside else self.by


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranked answer is an answer as the file has it, with its ``score``: more is better."""

    answer: Cell
    score: float


def find_answers(row: Row, columns: ColumnsConfig, ranked_by: RankedBy) -> Answers | None:
    """Find where the first row of a source has a list of answers; None where it has none.

    Raises:
        DataError: it is not certain what ranks them; the message names the setting that decides it.
    """
    path = columns.answers or next((n for n in _ANSWERS if _is_list(row, n)), "")
    if not path:
        return None
    answers = listed(lookup(row, path))
    first = answers[0] if isinstance(answers, list) and answers else None
    found = Answers(path, ranked_by, text=columns.answer_text)
    if ranked_by == "order":
        return found
    asked: dict[RankedBy, str] = {"scores": columns.scores, "ranks": columns.ranks}
    kinds = [kind for kind, name in asked.items() if name] or [*asked]
    if ranked_by != "auto":
        kinds = [ranked_by]
    known: dict[RankedBy, Sequence[str]] = {"scores": _SCORES, "ranks": _RANKS}
    candidates = [
        (kind, name, inside)
        for kind in kinds
        for name in ([asked[kind]] if asked[kind] else known[kind])
        for inside in (False, True)
        if _tells(first if inside else row, name, is_list=not inside)
    ]
    # UltraFeedback's answers have ratings of every aspect beside the overall one.
    overall = [c for c in candidates if c[1] in ("overall_score", "overall_scores")]
    candidates = overall if len(overall) == 1 else candidates
    if not candidates:
        raise DataError(_nothing_ranks(row, path, asked))
    if len(candidates) > 1:
        raise DataError(_several_rank(path, candidates))
    [(kind, name, inside)] = candidates
    if name == "ranking" and not columns.ranks:
        raise DataError(
            f"`ranking` may be the rank of each answer or the order of their numbers: for ranks "
            f"(1 is the best) set the source's `columns: {{answers: {path}, ranks: ranking}}`; "
            "an order has to be applied to the list, and `ranked_by: order` set"
        )
    return Answers(path, kind, by=name, inside=inside, text=columns.answer_text)


def pairs_of(
    answers: Sequence[Ranked], pairing: Pairing, *, seed: int, prompt: object
) -> Iterator[tuple[Ranked, Ranked]]:
    """Yield the pairs that a list gives, the better answer first.

    Of several with the best score the first is the best, with the worst the last is the worst. What
    is drawn depends on ``seed``, the prompt and the answers alone, not on their order. Where all
    are equally good, there is one pair, which is a tie.
    """
    best = max(answers, key=lambda answer: answer.score)
    worst = min(reversed(answers), key=lambda answer: answer.score)
    if pairing == "best_worst" or best.score == worst.score:
        yield best, worst
    elif pairing == "best_random":
        worse = [answer for answer in answers if answer.score < best.score]
        yield best, min(worse, key=lambda answer: _draw(seed, prompt, best, answer))
    else:
        for one, other in combinations(answers, 2):
            if one.score != other.score:
                yield (one, other) if one.score > other.score else (other, one)


def ranked(row: Row, where: Answers) -> list[Ranked]:
    """Return the answers of a row with how good each is.

    Ranks are negated, so that more is better; so is an answer's position where the order ranks.

    Raises:
        NotText: there is no list of at least two answers, or one has no text, score or rank.
    """
    name = f"`{where.path}`"
    answers = listed(lookup(row, where.path))
    if not isinstance(answers, list) or len(answers) < 2:
        raise NotText(f"{name} is not a list of at least two answers")
    values: list[Cell] = []
    if where.beside:
        found = listed(lookup(row, where.beside))
        values = found if isinstance(found, list) else []
        if len(values) != len(answers):
            raise OtherLength(
                f"{name} has {len(answers)} answers and `{where.beside}` {len(values)} values"
            )
    elif where.inside:
        values = [lookup(a, where.by) if isinstance(a, dict) else None for a in answers]
    else:
        values = list(range(1, len(answers) + 1))
    sign = 1 if where.ranked_by == "scores" else -1
    made = []
    for number, (answer, value) in enumerate(zip(answers, values, strict=True)):
        score = _number(value)
        if score is None:
            kind = where.ranked_by.removesuffix("s")
            raise Unscored(
                f"answer {number} of {name} has no {kind} (`{where.by}` is {_shown(value)})"
            )
        made.append(Ranked(_text(answer, where, name), sign * score))
    return made


def _is_list(row: Row, path: str) -> bool:
    """Return whether a column is a list of answers, and no dialogue.

    A list of messages is answers where there are several, and all are the assistant's.
    """
    value = listed(lookup(row, path))
    if not isinstance(value, list) or not value:
        return False
    roles = [m.get("role", m.get("from")) for m in value if is_message(m)]
    return not roles or (len(roles) == len(value) > 1 and {*roles} <= {"assistant", "gpt"})


def _tells(holder: object, path: str, *, is_list: bool) -> bool:
    """Return whether a row has a list, or an answer one value, at a path; either may be null."""
    if not isinstance(holder, dict) or not has_path(holder, path):
        return False
    value = listed(lookup(holder, path)) if is_list else lookup(holder, path)
    return value is None or (isinstance(value, list) == is_list and not isinstance(value, dict))


def _number(value: object) -> float | None:
    if value is None or isinstance(value, bool | list | dict):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def unread_scores(row: Row, columns: ColumnsConfig) -> str:
    """Return why two entries of one list would be mistaken for chosen and rejected in some rows.

    In these it is the other way round; "" if nothing suggests that.
    """
    chosen, rejected = _entry(columns.chosen), _entry(columns.rejected)
    if columns.chosen_score or columns.winner or not chosen or not rejected:
        return ""
    if chosen[0] != rejected[0]:
        return ""
    path, at, other = *chosen, rejected[1]
    entry = lookup(row, f"{path}.{at}")
    beside = [n for n in (*_SCORES, *_RANKS) if _tells(row, n, is_list=True)]
    inside = [n for n in (*_SCORES, *_RANKS) if _tells(entry, n, is_list=False)]
    if not beside and not inside:
        return ""
    name = (beside + inside)[0]
    first, second = (f"{name}.{i}" if beside else f"{path}.{i}.{name}" for i in (at, other))
    return (
        f"`{columns.chosen}` would be the chosen answer in every row, whatever `{name}` says: set "
        f"`columns: {{answers: {path}}}` alone, which pairs the answers by it, or add "
        f"`chosen_score: {first}` and `rejected_score: {second}` to have it compared"
    )


def unnamed_list(row: Row) -> str:
    """Return how to name a list of answers under an unknown name; "" where a row has none."""
    for name, value in row.items():
        answers = listed(value)
        if not isinstance(answers, list) or len(answers) < 2:
            continue
        kinds = {type(answer) for answer in answers}
        if kinds not in ({str}, {dict}) or any(is_message(answer) for answer in answers):
            continue
        winner = winner_column(row)
        if len(answers) == 2 and winner:
            text = next((f".{key}" for key in _TEXTS if key in answers[0]), "")
            text = text if kinds == {dict} else ""
            return (
                f"`{name}` seems to be two answers, and `{winner}` ({row[winner]!r} in the first "
                f"row) to say which is better: set the source's `columns: {{chosen: {name}.0{text},"
                f" rejected: {name}.1{text}, winner: {winner}, chosen_wins: VALUE, rejected_wins: "
                "VALUE}`, with the prompt's column as `prompt` where it is not recognised"
            )
        return (
            f"`{name}` may be a list of answers: if it is, name it in the source's "
            "`columns.answers`, and what ranks them in `columns.scores` or `columns.ranks`, or set "
            "`ranked_by: order` where the best stands first"
        )
    return ""


def _entry(path: str) -> tuple[str, str] | None:
    """Split a path through a list into that of the list and the number; None for another path."""
    found = re.fullmatch(r"(.+?)\.(\d+)(?:\..+)?", path)
    return (found[1], found[2]) if found else None


def _shown(value: object) -> str:
    """Return what a cell holds, for a message, without thousands of digits or a whole text."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "too long to show"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def _text(answer: Cell, where: Answers, name: str) -> Cell:
    """Return what an answer says: text, a message, or messages."""
    if not isinstance(answer, dict) or is_message(answer):
        return answer
    if where.text:
        at: Cell = lookup(answer, where.text)
        return at
    found = next((key for key in _TEXTS if key in answer), "")
    if not found:
        raise NotText(
            f"{name} holds an answer whose text is not known by its name ({columns_of(answer)}): "
            "set the source's `columns.answer_text`"
        )
    text: Cell = answer[found]
    return text


def _draw(seed: int, prompt: object, best: Ranked, other: Ranked) -> int:
    said = json.dumps([prompt, best.answer, other.answer], sort_keys=True, default=str)
    return draw_key(seed, hashlib.blake2b(said.encode("utf-8", "surrogatepass")).digest())


def _nothing_ranks(row: Row, path: str, asked: Mapping[RankedBy, str]) -> str:
    named = [f"`columns.{kind}: {name}`" for kind, name in asked.items() if name]
    given = f"{' and '.join(named)} is neither a list beside it nor in its answers" if named else ""
    return (
        f"`{path}` is a list of answers, and "
        + (given or "nothing is recognised that says which is better")
        + ": name a list of numbers beside it, or a number in each answer, by the source's "
        "`columns.scores` (more is better) or `columns.ranks` (1 is the best); where the best "
        f"stands first, set `ranked_by: order`. Columns seen: {columns_of(row)}"
    )


def _several_rank(path: str, candidates: Sequence[tuple[str, str, bool]]) -> str:
    named = [
        f"`{name}` ({kind}, {'in each answer' if inside else 'beside it'})"
        for kind, name, inside in candidates
    ]
    return (
        f"the answers of `{path}` could be ranked by {' or '.join(named)}: set the source's "
        "`columns.scores` (more is better) or `columns.ranks` (1 is the best) to the one that is "
        "meant, or `ranked_by`"
    )
