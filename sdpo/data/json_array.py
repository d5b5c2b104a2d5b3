"""Read the rows of a ``.json`` file: an array, an object of columns, or an object per line.

Arrays are decoded element by element from a sliding window, so their length costs no memory.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from sdpo.data.lines import in_words, names_once
from sdpo.errors import DataError
from sdpo.system.json_values import Cell

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK_BYTES = 1 << 20
_NEAR_END = 16
"""A decoding error this close to the window's end may only mean that the window is too small."""


def json_rows(file: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Cell]]]:
    """Yield a JSON file's rows, numbered from 0 (from line 1, where each is on its own line).

    Raises:
        DataError: it is malformed, not UTF-8, or not rows; the message names file and line.
    """
    window = _Window(file, path)
    first = window.peek()
    if not first:
        return
    if first == "[":
        yield from enumerate(_objects(_elements(window), path))
        return
    line = window.line
    value = window.value()
    if not window.peek():
        yield from enumerate(_objects(_from_object(value, path), path))
        return
    yield from _concatenated(window, value, line, path)


def _concatenated(
    window: "_Window", value: Cell, line: int, path: Path
) -> Iterator[tuple[int, dict[str, Cell]]]:
    while True:
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {line}: not an object but a {type(value).__name__}")
        yield line, value
        if not window.peek():
            return
        line = window.line
        value = window.value()


def _elements(window: "_Window") -> Iterator[Cell]:
    window.skip()
    if window.peek() != "]":
        yield window.value()
        while window.peek() == ",":
            window.skip()
            yield window.value()
    if window.peek() != "]":
        raise window.malformed("expected `,` or `]` after an element")
    window.skip()
    if window.peek():
        raise window.malformed("text after the end of the array")


def _objects(values: Iterator[Cell], path: Path) -> Iterator[dict[str, Cell]]:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{path}, row {index}: not an object but a {type(value).__name__}")
        yield value


def _from_object(value: Cell, path: Path) -> Iterator[Cell]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: neither an array of objects nor an object of columns")
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    for name in ("data", "rows"):
        if name in lists and all(isinstance(item, dict) for item in lists[name]):
            return iter(lists[name])
    if not value or not _are_columns(value, lists):
        return iter([value])
    if len({len(column) for column in lists.values()}) > 1:
        lengths = {name: len(column) for name, column in lists.items()}
        raise DataError(f"{path}: an object of columns of different lengths: {lengths}")
    return (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))


def _are_columns(value: dict[str, Cell], lists: dict[str, list[Cell]]) -> bool:
    """Return whether an object is a table by column rather than one row.

    A row of conversations has lists too, but lists of messages.
    """
    items = chain.from_iterable(lists.values())
    return len(lists) == len(value) and not any(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in items
    )


class _Window:
    """A window is the part of a JSON text being decoded; it grows at its end, its start is cut."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file = file
        self._path = path
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder(object_pairs_hook=names_once).raw_decode
        self._text = ""
        self._at = 0
        self._lines = 1
        self._counted = 0
        self._ended = False

    @property
    def line(self) -> int:
        """Return the line of the current position, from 1."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def malformed(self, message: str) -> DataError:
        """Return the error for the current position."""
        return DataError(f"{self._path}, line {self.line}: malformed JSON: {message}")

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def skip(self) -> None:
        """Step over the character that :meth:`peek` gave."""
        self._at += 1

    def value(self) -> Cell:
        """Return the JSON value at the current position."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError as error:
                raise self.malformed("nested too deeply") from error
            except ValueError as error:  # an integer of thousands of digits is no decoding error
                if self._cut_off(error) and self._grow():
                    continue
                raise self._explained(error) from error
            self._at = end
            found: Cell = value
            return found

    def _explained(self, error: ValueError) -> DataError:
        if not isinstance(error, json.JSONDecodeError):
            return self.malformed(str(error))
        self._at = error.pos
        if error.msg.startswith("Unterminated"):
            return self.malformed(
                "the text that begins here has no end: the file was cut off, or a quotation mark "
                "is missing"
            )
        if self._text[error.pos : error.pos + 1] in ("\r", "\n"):
            return self.malformed(
                "it ends in the middle of a text: the record was cut off, or a line break within "
                "the text is not written as \\n"
            )
        return self.malformed(in_words(error))

    def _cut_off(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        # An open string is reported where it starts, everything else where it is.
        near = error.pos >= len(self._text) - _NEAR_END
        return near or error.msg.startswith("Unterminated string")

    def _grow(self) -> bool:
        if self._ended:
            return False
        # At least doubles what is left, so that a long element is not decoded over and over.
        chunk = self._file.read(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._ended = not chunk
        line = self.line
        try:
            more = self._utf8.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            before = self._text.count("\n", self._at) + error.object.count(b"\n", 0, error.start)
            raise DataError(
                f"{self._path}, line {line + before}: not UTF-8 ({error.reason}). "
                "Save the file as UTF-8"
            ) from error
        self._text = self._text[self._at :] + more
        self._at = self._counted = 0
        return True
