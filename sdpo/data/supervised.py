"""Read a data set of supervised examples for the supervised stage, as pairs are read.

Accepted are ``messages`` or ``conversations`` (the last assistant turn is the completion),
``prompt``/``completion`` as text or messages, ``prompt``/``response``, and Alpaca's
``instruction``[/``input``][/``system``][/``history``] with ``output``; anything else is named by
``supervised.columns``.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sdpo.config import SupervisedColumnsConfig, SupervisedConfig
from sdpo.data.cells import NotText, cell
from sdpo.data.collect import Progress, rejection_line
from sdpo.data.keys import content_digest, example_key, messages_key
from sdpo.data.messages import (
    is_conversation,
    is_transcript,
    messages_of,
    plain_text,
    transcript_answer,
    transcript_prompt,
)
from sdpo.data.pairs_file import BatchWriter
from sdpo.data.prompts import (
    PromptFields,
    Rejection,
    Row,
    all_blank,
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
from sdpo.data.readers import numbered, place, read_rows
from sdpo.data.schema import MESSAGES, Format, Message
from sdpo.data.template_inputs import template_inputs
from sdpo.errors import ConfigError, DataError
from sdpo.system.files import publish_file

SUPERVISED_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("prompt_key", pa.string()),
        ("row", pa.int64()),
        ("format", pa.dictionary(pa.int32(), pa.string())),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("template_inputs", pa.string()),
    ]
)
"""``supervised.parquet`` has these columns; files of older versions lack the last one."""

_DIALOGUES = ("messages", "conversations")
_COMPLETIONS = (
    (PromptFields("prompt", system="system"), "completion"),
    (PromptFields("prompt", system="system"), "response"),
    (PromptFields("instruction", context="input", system="system", history="history"), "output"),
)
_PROGRESS_ROWS = 1000


@dataclass(frozen=True, slots=True)
class PreparedSupervised:
    """Prepared examples are on disk; ``digest`` as in :class:`~sdpo.data.prepare.PreparedPairs`."""

    path: Path
    rejected_path: Path
    read: int
    kept: int
    rejected: dict[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class _Example:
    prompt: list[Message]
    completion: list[Message]
    template_inputs: str = ""


def prepare_supervised(
    config: SupervisedConfig,
    *,
    default_format: Format,
    out: Path,
    on_progress: Progress | None = None,
) -> PreparedSupervised:
    """Publish ``supervised.parquet`` and ``rejected_supervised_rows.jsonl`` in ``out``.

    All examples are written: the training on them applies ``fraction`` and the reserve.

    Raises:
        ConfigError: there is no path.
        DataError: data cannot be read, or nothing is left of it. Nothing is published.
    """
    if not config.path:
        raise ConfigError("supervised.path is empty: name the supervised data")
    out.mkdir(parents=True, exist_ok=True)
    path, rejected_path = out / "supervised.parquet", out / "rejected_supervised_rows.jsonl"
    format_: Format = default_format if config.format == "auto" else config.format
    with (
        publish_file(path) as examples,
        publish_file(rejected_path) as rejections,
        rejections.open("w", encoding="utf-8") as rejected,
        BatchWriter(examples, SUPERVISED_SCHEMA) as writer,
    ):
        reading = _Reading(format_, config, writer)
        rows = read_rows(
            config.path, split=config.split, subset=config.subset, revision=config.revision
        )
        for number, row in rows:
            try:
                rejected.write(reading.add(number, row))
            except DataError as error:
                raise DataError(f"{place(config.path, number)}: {error}") from error
            if on_progress and reading.read % _PROGRESS_ROWS == 0:
                on_progress("supervised", reading.read, None)
        if on_progress:
            on_progress("supervised", reading.read, reading.read)
        if not reading.kept:
            raise DataError(f"{config.path}: no supervised example is left: {reading.reasons()}")
    return PreparedSupervised(
        path=path,
        rejected_path=rejected_path,
        read=reading.read,
        kept=reading.kept,
        rejected=dict(sorted(reading.rejected.items())),
        digest=reading.digest.hexdigest(),
    )


class _Reading:
    """This object writes the examples of a data set as they come, and counts what it leaves out."""

    def __init__(self, format_: Format, config: SupervisedConfig, writer: BatchWriter):
        self.read = self.kept = 0
        self.rejected: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self.digest = hashlib.sha256()
        self._format = format_
        self._columns = config.columns
        self._variables = config.chat_template_kwargs
        self._writer = writer
        self._name, self._path = Path(config.path).name, config.path
        self._layout: tuple[PromptFields, str] | None = None
        self._rows: dict[bytes, int] = {}

    def reasons(self) -> str:
        """Return the counts by reason, with the first row of the commonest, for a message."""
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self.rejected.items()))
        most = max(self._first, key=lambda reason: self.rejected[reason], default="")
        return f"of {self.read} rows {counts}" + (
            f". The first that is {most}: {self._first[most]}" if most else ""
        )

    def add(self, number: int, row: Row) -> str:
        """Write an example and return "", or return the line that says why it is not used."""
        self.read += 1
        if self._layout is None:
            self._layout = _recognise(row, self._columns)
        try:
            refuse_media(row)
            example = replace(
                _example(row, *self._layout, self._format),
                template_inputs=template_inputs(row, self._variables, self._format),
            )
            problem = self._write(number, example)
        except NotText as reason:
            problem = Rejection(reason.reason, str(reason))
        except UnicodeEncodeError:
            problem = Rejection("not_text", "the text holds half of a surrogate pair")
        if problem is None:
            self.kept += 1
            return ""
        self.rejected[problem.reason] += 1
        self._first.setdefault(problem.reason, f"{numbered(self._path, number)}: {problem.detail}")
        return rejection_line(self._name, number, problem)

    def _write(self, number: int, example: _Example) -> Rejection | None:
        if no_question(example.prompt):
            return Rejection("empty_prompt", "there is no prompt")
        if all_blank(example.completion):
            return Rejection("empty_completion", "there is nothing to learn after the prompt")
        if problem := unfinished(example.prompt):
            return problem
        if problem := tool_turn("the completion", example.completion):
            return problem
        prompt = messages_key(example.prompt, text_role="user")
        inputs = example.template_inputs
        key = example_key(prompt, example.completion, inputs)
        first = self._rows.setdefault(key, number)
        if first != number:
            return Rejection("duplicate", f"the same example as {numbered(self._path, first)}")
        strings = [self._format, str(len(example.prompt))]
        for message in (*example.prompt, *example.completion):
            strings += message.strings()
        strings += [inputs] if inputs else []
        self.digest.update(content_digest(strings))
        turns = (example.prompt, example.completion)
        values = (key.hex(), prompt.hex(), number, self._format, *turns, inputs or None)
        self._writer.add(values, chars=sum(len(s) for s in strings))
        return None


def _recognise(row: Row, columns: SupervisedColumnsConfig) -> tuple[PromptFields, str]:
    """Return the prompt's fields, and the column of the completion or the whole dialogue."""
    for field in ("messages", "prompt", "completion", "system"):
        path = getattr(columns, field)
        if path and not has_path(row, path):
            raise DataError(
                f"supervised.columns.{field} is `{path}`, but the columns are: {columns_of(row)}"
            )
    system = columns.system or "system"
    if columns.messages:
        return PromptFields("", system=system), columns.messages
    if columns.prompt:
        return PromptFields(columns.prompt, system=system), columns.completion
    fields, column = _known_columns(row)
    return replace(fields, system=system), column


def _known_columns(row: Row) -> tuple[PromptFields, str]:
    for column in ("label", "kto_tag"):
        if has_path(row, column) and not has_path(row, "messages"):
            raise DataError(
                f"this is unpaired preference data (`{column}`), not supervised data. Columns "
                f"seen: {columns_of(row)}"
            )
    for fields, completion in _COMPLETIONS:
        if has_path(row, fields.prompt) and has_path(row, completion):
            return fields, completion
    for name in _DIALOGUES:
        if has_path(row, name):
            return PromptFields("", system="system"), name
    raise DataError(
        f"no supervised columns recognised. Columns seen: {columns_of(row)}. Known are `messages`, "
        "`conversations`, `prompt` and `completion` or `response`, and `instruction` and `output`; "
        "for other names set supervised.columns"
    )


def _example(row: Row, fields: PromptFields, column: str, format_: Format) -> _Example:
    value: Any = cell(lookup(row, column), f"`{column}`")
    if format_ == "text":
        refuse_conversation(value, column)
        completion = plain_text(value, f"`{column}`")
        prompt = text_prompt(row, fields)
        return _Example([Message("text", prompt)], [Message("text", completion)])
    turns = messages_of(value, f"`{column}`", role="assistant")
    if fields.prompt:
        prompt = lookup(row, fields.prompt)
        if isinstance(prompt, str) and isinstance(value, str) and is_transcript(prompt):
            messages, turns = transcript_prompt(prompt), transcript_answer(value)
        else:
            messages = chat_prompt(row, fields)
    else:
        if not is_conversation(value):
            raise NotText(f"`{column}` is not a list of messages")
        _refuse_untrained(value, column)
        last = len(turns) - 1 if turns and turns[-1].role == "assistant" else len(turns)
        messages, turns = turns[:last], turns[last:]
    return _Example(with_system(messages, system_text(row, fields)), turns)


def _refuse_untrained(value: object, column: str) -> None:
    """Refuse a dialogue whose last turn says that it is not to be trained on.

    OpenAI has ``weight: 0`` for that, axolotl ``train: false``.
    """
    last = value[-1] if isinstance(value, list) and value else value
    said = last if isinstance(last, dict) else {}
    for name in ("weight", "train"):
        if said.get(name) is not None and not said[name]:
            raise NotText(
                f"the last turn of `{column}` has `{name}: {said[name]}`, so it is not to be "
                "trained on: end the row before it, or take that out"
            )
