"""Recognise by its columns where preference data keeps the parts of a pair.

These are accepted without settings (columns in any order, others beside them):

- TRL: ``prompt``/``chosen``/``rejected`` as text or messages, or ``chosen``/``rejected`` alone
  (whole texts or whole dialogues, the prompt being what both sides share);
- ms-swift: ``messages`` with ``rejected_response`` or ``rejected_messages``, and ``query``
  [/``system``][/``history``] and ``response`` with ``rejected_response``;
- LLaMA-Factory: ``instruction``[/``input``][/``system``][/``history``] or ``conversations`` with
  ``chosen``/``rejected``;
- axolotl: ``messages``, ``conversation``, ``question``, ``input`` or ``instruction`` with
  ``chosen``/``rejected`` or ``chosen_response``/``rejected_response``, and ``prompt``/``answers``;
- OpenAI: ``input.messages``/``preferred_output``/``non_preferred_output``;
- lists of answers with scores, ratings or ranks (:mod:`sdpo.data.lists`);
- Anthropic HH transcripts, UltraFeedback, Intel Orca, ``request``/``chosen``/``rejected``.

The first row decides which format a source has; the source's ``columns`` name anything else.
"""

from dataclasses import dataclass, replace

from sdpo.config import ColumnsConfig
from sdpo.data.lists import Answers, RankedBy, find_answers, unnamed_list, unread_scores
from sdpo.data.prompts import PromptFields, Row, columns_of, has_path
from sdpo.data.winners import answer_columns, named_answers, unread_winner, use_winner
from sdpo.errors import DataError
from sdpo.layouts import layouts_of

_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("messages", "rejected_response"),
    ("messages", "rejected_messages"),
    ("response", "rejected_response"),
)
_PROMPTS = (
    "prompt",
    "messages",
    "conversations",
    "conversation",
    "input.messages",
    "question",
    "request",
    "instruction",
    "input",
    "query",
)
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("metadata.score_chosen", "metadata.score_rejected"),
    ("metadata.chosen_score", "metadata.rejected_score"),
)
_KNOWN = (
    "Known are `chosen` and `rejected` (or `chosen_response`/`rejected_response`, "
    "`preferred_output`/`non_preferred_output`), with the prompt in `prompt`, `messages`, "
    "`conversations`, `conversation`, `input.messages`, `question`, `request`, `instruction` or "
    "`input`, or inside both sides; and a prompt with a list of `answers`, `responses` or "
    "`completions` that have scores or ranks"
)
_MAP = "For other names set the source's `columns`"


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout says where a source keeps the parts of a pair, as dotted paths.

    ``fields.prompt`` is "" where the sides carry the prompt; ``answers`` is set instead of
    ``chosen`` and ``rejected`` for ranked lists; the scores are both set or both "".
    """

    fields: PromptFields
    chosen: str = ""
    rejected: str = ""
    answers: Answers | None = None
    chosen_score: str = ""
    rejected_score: str = ""
    winner: str = ""

    @property
    def name(self) -> str:
        """Return the columns it reads, for people: ``prompt/chosen/rejected``."""
        parts = (self.fields.prompt, self.chosen, self.rejected, *self._of_list(), self.winner)
        return "/".join(dict.fromkeys([part for part in parts if part]))

    def paths(self) -> list[str]:
        """Return all paths that are set."""
        sides = (self.chosen, self.rejected, *self._of_list(), self.winner)
        own = (*sides, self.chosen_score, self.rejected_score)
        return self.fields.paths() + [path for path in own if path]

    def _of_list(self) -> tuple[str, ...]:
        return (self.answers.path, self.answers.beside) if self.answers else ()


def recognise(row: Row, columns: ColumnsConfig, *, ranked_by: RankedBy = "auto") -> Layout:
    """Return the layout of a source from its first row, ranked as :func:`find_answers` says.

    Raises:
        DataError: a mapped column is not there, data is not paired, or no columns are known.
    """
    _check_mapped(row, columns)
    recognised = next((s for s in _SIDES if has_path(row, s[0]) and has_path(row, s[1])), ("", ""))
    chosen, rejected = columns.chosen or recognised[0], columns.rejected or recognised[1]
    prompt = columns.prompt or prompt_column(row)
    if recognised[0] and not columns.chosen and (advice := named_answers(row, recognised)):
        raise DataError(f"{advice}. Columns seen: {columns_of(row)}")
    if chosen and rejected and not columns.answers:
        if (chosen, rejected) == ("messages", "rejected_messages") and not columns.prompt:
            prompt = ""  # both sides are whole dialogues
        found = Layout(_prompt_fields(prompt), chosen, rejected, winner=columns.winner)
    elif prompt and (answers := _answers(row, columns, ranked_by)):
        found = Layout(_prompt_fields(prompt), answers=answers)
    else:
        raise DataError(_not_paired(row))
    if columns.system:
        found = replace(found, fields=replace(found.fields, system=columns.system))
    if columns.chosen_score:
        return with_scores(found, (columns.chosen_score, columns.rejected_score))
    return with_scores(found, score_columns(row))


def score_columns(row: Row) -> tuple[str, str]:
    """Return the columns of a row that are known to hold both sides' scores, or "" twice."""
    return next((s for s in _SCORES if has_path(row, s[0]) and has_path(row, s[1])), ("", ""))


def with_scores(layout: Layout, scores: tuple[str, str]) -> Layout:
    """Return ``layout`` with the columns of the two scores."""
    return replace(layout, chosen_score=scores[0], rejected_score=scores[1])


def prompt_column(row: Row) -> str:
    """Return the first column of a row that is known to hold a prompt, or ""."""
    return next((name for name in _PROMPTS if has_path(row, name)), "")


def _answers(row: Row, columns: ColumnsConfig, ranked_by: RankedBy) -> Answers | None:
    """Return where the row's list of answers is; a list of right and wrong steps is none."""
    is_asked = columns.answers or columns.scores or columns.ranks or ranked_by != "auto"
    if not is_asked and all(has_path(row, name) for name in ("completions", "labels")):
        return None
    return find_answers(row, columns, ranked_by)


def _prompt_fields(prompt: str) -> PromptFields:
    if prompt == "instruction":
        return PromptFields(prompt, context="input", system="system", history="history")
    if prompt == "query":
        return PromptFields(prompt, system="system", history="history")
    return PromptFields(prompt, system="system")


def _check_mapped(row: Row, columns: ColumnsConfig) -> None:
    if bool(columns.chosen_score) != bool(columns.rejected_score):
        raise DataError("columns.chosen_score and columns.rejected_score are set together or not")
    if len({bool(columns.winner), bool(columns.chosen_wins), bool(columns.rejected_wins)}) > 1:
        raise DataError(
            "columns.winner, columns.chosen_wins and columns.rejected_wins are set together or not"
        )
    for field in ("prompt", "chosen", "rejected", "winner", "answers"):
        path = getattr(columns, field)
        if path and not has_path(row, path):
            raise DataError(f"columns.{field} is `{path}`, but the columns are: {columns_of(row)}")
    if fault := unread_winner(row, columns) or unread_scores(row, columns):
        raise DataError(fault)


def _not_paired(row: Row) -> str:
    seen = f"Columns seen: {columns_of(row)}"
    if known := layouts_of(row.keys()):
        names = " or ".join(f"`{name}`" for name in known)
        return f"no pair is told by columns alone: set the source's `layout` to {names}. {seen}"
    if "" not in (answers := answer_columns(row)):
        remedy = use_winner(row, answers)
        return f"this is two answers a row and which of them is better: {remedy}. {seen}"
    known_kinds = (kind for kind, names in _UNPAIRED if all(has_path(row, n) for n in names))
    kind = next(known_kinds, "")
    if kind in ("", "prompts alone", "plain text") and (advice := unnamed_list(row)):
        return f"{advice}. {seen}"
    what = f"this is {kind}, not preference pairs" if kind else "no preference columns recognised"
    return f"{what}. {seen}. {_KNOWN}. {_MAP}"


_UNPAIRED = (
    ("unpaired preference data (KTO, `kto_tag`)", ("kto_tag",)),
    ("unpaired preference data (`completion` and `label`)", ("completion", "label")),
    ("stepwise supervision (`completions` and `labels`)", ("completions", "labels")),
    ("supervised data (`prompt` and `completion`)", ("prompt", "completion")),
    ("supervised data (`prompt` and `response`)", ("prompt", "response")),
    ("supervised data (`instruction` and `output`)", ("instruction", "output")),
    ("supervised data (`messages`)", ("messages",)),
    ("supervised data (`conversations`)", ("conversations",)),
    ("one side alone (`chosen` without `rejected`)", ("chosen",)),
    ("one side alone (`rejected` without `chosen`)", ("rejected",)),
    ("prompts alone", ("prompt",)),
    ("plain text", ("text",)),
)
