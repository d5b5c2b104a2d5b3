"""Normalise the rows of a source to pairs, in the layout that its columns were recognised as.

Where the sides are whole dialogues, they hold the prompt; of a prompt column beside them only a
system message that they lack is taken. A list of answers is made into pairs
(:mod:`sdpo.data.lists`). Text is never changed: in a ``chat`` source a text prompt becomes a user's
turn and a text answer an assistant's, in a ``text`` source every part stays the text that it is.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sdpo.config import ColumnsConfig
from sdpo.data.cells import NotText, cell, is_json_text
from sdpo.data.lists import Pairing, RankedBy, pairs_of, ranked
from sdpo.data.messages import (
    is_conversation,
    is_transcript,
    messages_of,
    plain_text,
    split_dialogues,
    split_texts,
    transcript_answer,
    transcript_prompt,
    whole_transcripts,
)
from sdpo.data.notes import Note, notes_of
from sdpo.data.prompts import (
    Rejection,
    Row,
    all_blank,
    blank,
    chat_prompt,
    columns_of,
    has_path,
    lookup,
    no_question,
    refuse_conversation,
    refuse_media,
    system_text,
    text_prompt,
    tool_turn,
    unfinished,
    with_system,
)
from sdpo.data.recognise import Layout, prompt_column, recognise, score_columns, with_scores
from sdpo.data.schema import Format, Message
from sdpo.data.template_inputs import COLUMNS, template_inputs
from sdpo.data.winners import told
from sdpo.errors import DataError

Contradictions = Literal["refuse", "swap", "keep"]
_TOO_NEAR = ("tie", "score_gap")
_Sides = tuple[Any, Any, float | None, float | None]
"""These are the chosen and the rejected side as a row has them, and their scores."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate is a row that is a pair, before it is compared with the others."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_score: float | None
    rejected_score: float | None
    template_inputs: str = ""


class PairNormaliser:
    """A normaliser turns rows of one source into pairs one by one; it remembers their columns."""

    def __init__(
        self,
        *,
        format: Format,
        columns: ColumnsConfig,
        strata: Sequence[str] = (),
        contradictions: Contradictions = "refuse",
        ranked_by: RankedBy = "auto",
        pairing: Pairing = "best_worst",
        min_score_gap: float = 0,
        seed: int = 0,
        variables: Mapping[str, object] = {},
    ):
        self.layout: Layout | None = None
        self.notes: list[Note] = []
        """These are the notes on the row that was converted last."""
        self._contradictions = contradictions
        self._ranked_by: RankedBy = ranked_by
        self._pairing: Pairing = pairing
        self._min_score_gap = min_score_gap
        self._seed = seed
        self._variables = variables
        self._format = format
        self._mapping = columns
        self._strata = list(strata)
        self._columns: dict[str, None] = {}
        self._absent = [*([columns.system] if columns.system else []), *self._strata]
        if columns.chosen_score:
            self._absent += [columns.chosen_score, columns.rejected_score]

    def convert(self, row: Row) -> list[Candidate | Rejection]:
        """Return the pair in ``row``, or why it is none; of a list of answers all its pairs.

        Raises:
            DataError: the source cannot be used at all (the message does not name the row).
        """
        layout = self._look_at(row)
        try:
            refuse_media(row)
            made = [self._pair(row, layout, sides) for sides in self._sides(row, layout)]
        except NotText as reason:
            return [Rejection(reason.reason, str(reason))]
        pairs = [each for each in made if isinstance(each, Candidate)]
        self.notes = self._notes(row, layout, pairs[0]) if pairs else []
        if self._pairing == "all":
            # A list gives the pairs that differ enough: the others are reported where it gives
            # none.
            unequal = {e.reason: e for e in reversed(made) if isinstance(e, Rejection)}
            others = [e for e in unequal.values() if e.reason not in _TOO_NEAR or not pairs]
            return [*pairs, *others]
        return made

    def strata_of(self, row: Row) -> dict[str, str]:
        """Return the values of the strata columns as text; "" for null."""
        values = {path: lookup(row, path) for path in self._strata}
        return {path: "" if value is None else str(value) for path, value in values.items()}

    def finish(self) -> None:
        """Finish after the last row.

        Raises:
            DataError: a column that the recipe names was in no row.
        """
        if self._absent:
            raise DataError(
                f"no row has the column `{self._absent[0]}` that the recipe names. Columns seen: "
                f"{', '.join(self._columns) or 'none'}"
            )

    def unused_columns(self) -> tuple[str, ...]:
        """Return the top-level columns that no part of a pair was read from."""
        used = self._used(self._columns)
        return tuple(name for name in self._columns if name not in used)

    def _used(self, columns: Container[str]) -> set[str]:
        """Return those top-level columns that something is read from."""
        paths = [*(self.layout.paths() if self.layout else []), *self._strata, *COLUMNS]
        return {path if path in columns else path.split(".")[0] for path in paths}

    def _notes(self, row: Row, layout: Layout, pair: Candidate) -> list[Note]:
        return notes_of(
            row,
            prompt=layout.fields.prompt,
            sides=[path for path in (layout.chosen, layout.rejected) if path],
            used=self._used(row),
            turns=pair.prompt,
            is_chat=self._format == "chat",
        )

    def _look_at(self, row: Row) -> Layout:
        if self.layout is None:
            self.layout = recognise(row, self._mapping, ranked_by=self._ranked_by)
            self._check_list(self.layout)
        known = row.keys() <= self._columns.keys()
        if not known:
            self._columns.update(dict.fromkeys(row))
            found = prompt_column(row)
            if not self.layout.fields.prompt and found not in ("", self.layout.chosen):
                raise DataError(
                    f"rows of two formats: the first has no prompt column, this one has "
                    f"`{found}`. Split the file, or set the source's `columns`"
                )
        if not self.layout.chosen_score and (not known or "metadata" in row):
            # Not every row need have scores; the first that has them shows where they are.
            self.layout = with_scores(self.layout, score_columns(row))
        if self._absent:
            self._absent = [path for path in self._absent if not has_path(row, path)]
        return self.layout

    def _check_list(self, layout: Layout) -> None:
        """Refuse settings for lists where the rows have none."""
        mapped = [n for n in ("answer_text", "scores", "ranks") if getattr(self._mapping, n)]
        given = [f"columns.{name}" for name in mapped]
        given += ["ranked_by"] if self._ranked_by != "auto" else []
        given += ["pairing"] if self._pairing != "best_worst" else []
        if given and not layout.answers:
            raise DataError(
                f"{', '.join(given)} of the source would have no effect: its rows have no list of "
                f"answers, they are read as {layout.name}. Leave it out, or name the list in "
                "`columns.answers`"
            )

    def _sides(self, row: Row, layout: Layout) -> Iterator[_Sides]:
        """Yield both sides of every pair in a row, as the row has them, with their scores."""
        if layout.answers:
            prompt = lookup(row, layout.fields.prompt)
            answers = ranked(row, layout.answers)
            for one, other in pairs_of(answers, self._pairing, seed=self._seed, prompt=prompt):
                yield one.answer, other.answer, one.score, other.score
            return
        yield (
            cell(lookup(row, layout.chosen), f"`{layout.chosen}`"),
            cell(lookup(row, layout.rejected), f"`{layout.rejected}`"),
            self._score(row, layout.chosen_score),
            self._score(row, layout.rejected_score),
        )

    def _pair(self, row: Row, layout: Layout, sides: _Sides) -> Candidate | Rejection:
        chosen, rejected, chosen_score, rejected_score = sides
        if not layout.fields.prompt and (
            problem := _implicit_problem(row, layout, chosen, rejected)
        ):
            return problem
        read = _as_chat if self._format == "chat" else _as_text
        pair = Candidate(
            *read(row, layout, chosen, rejected),
            chosen_score,
            rejected_score,
            template_inputs(row, self._variables, self._format),
        )
        if layout.winner:
            winner = lookup(row, layout.winner)
            if told(winner) == told(self._mapping.rejected_wins):
                pair = _swapped(pair)
            elif told(winner) != told(self._mapping.chosen_wins):
                return Rejection("no_winner", f"`{layout.winner}` is {winner!r}")
        if _contradicts(pair) and self._contradictions == "swap":
            pair = _swapped(pair)
        problem = _problem(row, layout, pair) or self._too_near(pair)
        if problem or not _contradicts(pair) or self._contradictions == "keep":
            return problem or pair
        return Rejection(
            "scores_contradict",
            f"the chosen side scores {pair.chosen_score:g} and the rejected one "
            f"{pair.rejected_score:g}: set the source's `contradictions` to `swap` (the better "
            "score is chosen) or `keep`",
        )

    def _too_near(self, pair: Candidate) -> Rejection | None:
        chosen, rejected, least = pair.chosen_score, pair.rejected_score, self._min_score_gap
        if not least:
            return None
        if chosen is None or rejected is None:
            return Rejection("score_gap", "min_score_gap is set, and the pair has not both scores")
        if abs(chosen - rejected) >= least:
            return None
        return Rejection(
            "score_gap", f"the sides score {chosen:g} and {rejected:g}: min_score_gap is {least:g}"
        )

    def _score(self, row: Row, path: str) -> float | None:
        value = lookup(row, path) if path else None
        if value is None or value == "" or isinstance(value, bool):
            return None
        try:
            score = float(value)
        except (TypeError, ValueError):
            if path in (self._mapping.chosen_score, self._mapping.rejected_score):
                raise DataError(f"the score `{path}` is {value!r}, not a number") from None
            return None
        return score if math.isfinite(score) else None


_Parts = tuple[list[Message], list[Message], list[Message]]


def _as_text(row: Row, layout: Layout, chosen: object, rejected: object) -> _Parts:
    (one, left), (other, right) = _named(layout, chosen, rejected)
    refuse_conversation(left, one)
    refuse_conversation(right, other)
    left, right = plain_text(left, f"`{one}`"), plain_text(right, f"`{other}`")
    if layout.fields.prompt and not whole_transcripts(left, right):
        prompt = text_prompt(row, layout.fields)
    else:
        prompt, left, right = split_texts(left, right)
        system = system_text(row, layout.fields)
        prompt = f"{system}\n\n{prompt}" if system and prompt else prompt
    return [Message("text", prompt)], [Message("text", left)], [Message("text", right)]


def _as_chat(row: Row, layout: Layout, chosen: object, rejected: object) -> _Parts:
    if is_conversation(chosen) or is_conversation(rejected):
        parts = _from_messages(row, layout, chosen, rejected)
    else:
        parts = _from_strings(row, layout, chosen, rejected)
    return with_system(parts[0], system_text(row, layout.fields)), parts[1], parts[2]


def _from_messages(row: Row, layout: Layout, chosen: object, rejected: object) -> _Parts:
    left, right = (
        messages_of(side, f"`{name}`", role="assistant")
        for name, side in _named(layout, chosen, rejected)
    )
    if layout.chosen == layout.fields.prompt:  # the dialogue's last turn is the chosen side
        last = len(left) - 1 if left and left[-1].role == "assistant" else len(left)
        return left[:last], left[last:], right
    prompt = chat_prompt(row, layout.fields) if layout.fields.prompt else []
    if prompt and not any(m and m[0].role != "assistant" for m in (left, right)):
        return prompt, left, right
    cut = split_dialogues(left, right)
    if cut is None:
        return [], left, right
    lead = prompt[0].content if prompt and prompt[0].role == "system" else ""
    return with_system(left[:cut], lead), left[cut:], right[cut:]


def _from_strings(row: Row, layout: Layout, chosen: object, rejected: object) -> _Parts:
    left, right = (plain_text(side, f"`{name}`") for name, side in _named(layout, chosen, rejected))
    in_sides = not layout.fields.prompt or whole_transcripts(left, right)
    if in_sides:
        prompt, left, right = split_texts(left, right)
    else:
        prompt = lookup(row, layout.fields.prompt)
    if isinstance(prompt, str) and is_transcript(prompt):
        return transcript_prompt(prompt), transcript_answer(left), transcript_answer(right)
    turns = [Message("user", prompt)] if in_sides else chat_prompt(row, layout.fields)
    return turns, [Message("assistant", left)], [Message("assistant", right)]


def _named(layout: Layout, chosen: object, rejected: object) -> list[tuple[str, Any]]:
    """Return both sides with the columns that they are in."""
    path = layout.answers.path if layout.answers else ""
    return [(layout.chosen or path, chosen), (layout.rejected or path, rejected)]


def _swapped(pair: Candidate) -> Candidate:
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
    )


def _contradicts(pair: Candidate) -> bool:
    """Return whether the chosen side scores less than the rejected one."""
    chosen, rejected = pair.chosen_score, pair.rejected_score
    return chosen is not None and rejected is not None and chosen < rejected


def _implicit_problem(
    row: Row, layout: Layout, chosen: object, rejected: object
) -> Rejection | None:
    """Return what is wrong with two whole texts or dialogues before their prompt is split off."""
    for path, side, reason in (
        (layout.chosen, chosen, "empty_chosen"),
        (layout.rejected, rejected, "empty_rejected"),
    ):
        if not side or (isinstance(side, str) and blank(side)):
            return Rejection(reason, _missing(row, path))
    if chosen == rejected:
        return Rejection("equal_sides", "chosen and rejected are the same text")
    if isinstance(chosen, str) and is_json_text(chosen) and is_json_text(rejected):
        return Rejection(
            "not_text",
            f"`{layout.chosen}` and `{layout.rejected}` hold JSON, within which no prompt can be "
            "told from an answer: convert the file to messages, or give the prompt a column",
        )
    return None


def _problem(row: Row, layout: Layout, pair: Candidate) -> Rejection | None:
    if no_question(pair.prompt):
        return Rejection("empty_prompt", _no_prompt(row, layout))
    if all_blank(pair.chosen):
        return Rejection("empty_chosen", _missing(row, layout.chosen))
    if all_blank(pair.rejected):
        return Rejection("empty_rejected", _missing(row, layout.rejected))
    if problem := unfinished(pair.prompt):
        return problem
    if problem := tool_turn("chosen", pair.chosen) or tool_turn("rejected", pair.rejected):
        return problem
    if pair.chosen == pair.rejected:
        return Rejection("equal_sides", "chosen and rejected are the same text")
    if pair.chosen_score is not None and pair.chosen_score == pair.rejected_score:
        return Rejection("tie", f"both sides score {pair.chosen_score:g}")
    return None


def _no_prompt(row: Row, layout: Layout) -> str:
    if layout.fields.prompt:
        return _missing(row, layout.fields.prompt)
    return "the sides share no beginning that could be the prompt"


def _missing(row: Row, path: str) -> str:
    if not path or has_path(row, path):
        return f"`{path}` says nothing" if path else "the answer says nothing"
    return f"the row has no `{path}`; its columns are: {columns_of(row)}"
