"""Make standard streams outlast their readers, take any text, and carry no control sequences.

A run does not end because nobody reads what it prints, because the terminal knows ASCII alone, or
because the log is on a disk that is full: what cannot be written is left out, and the first reason
is kept for the exit code.
"""

import codecs
import errno
import io
import os
import re
import sys
import unicodedata
from typing import IO, Any

_ENDURED = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
"""There is no reader, no space, or no terminal any more."""

_ERRORS = "sdpo.ascii"
_IN_ASCII = {
    **{"✓": "+", "▶": ">", "│": "|", "–": "-", "—": "-", "…": "...", "→": "->", "·": "."},
    **{"γ": "gamma", "β": "beta", "±": "+-", "≥": ">=", "≤": "<=", "×": "x"},
}

_BETWEEN = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
"""Joiners are spelling here: between letters of Persian or Hindi, or parts of one emoji."""


class _Pictures(dict[int, str]):
    """This table maps characters that are no text to visible ones, and all others to themselves."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = character if _is_text(character) else _picture(code)
        return self[code]


def _is_text(character: str) -> bool:
    return character in "\t\n" or unicodedata.category(character) not in _NO_TEXT


def _picture(code: int) -> str:
    """Return Unicode's picture of a character, or its code where it has none."""
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


_NO_TEXT = {"Cc", "Cf", "Zl", "Zp"}
"""These are controls; marks of format (of direction, or without a width); ends of lines."""
_PICTURES = _Pictures()


def visible(text: str) -> str:
    """Return ``text`` with what a terminal would obey, or not show, as something to see.

    That is control characters (colours, titles, the clipboard, the cursor) but tab and line feed;
    marks of direction, which show a text in another order than it has; and characters without a
    width, which make two names look the same. Joiners stay where they are spelling.
    """
    if text.isprintable():
        return text
    kept = {match.start() for match in _BETWEEN.finditer(text)}
    return "".join(c if at in kept else _PICTURES[ord(c)] for at, c in enumerate(text))


class _Lasting(io.FileIO):
    """A lasting stream takes everything; ``lost`` is why something was left out, or 0."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.lost = 0

    def write(self, data: Any, /) -> int:
        """Write, or leave out what cannot be written; return the bytes taken."""
        if not self.lost:
            try:
                return super().write(data)
            except OSError as error:
                if error.errno not in _ENDURED:
                    raise
                self.lost = error.errno or 0
        return len(data)


def make_lasting() -> None:
    """Give this process such streams; one that is closed leads nowhere from here on.

    Call it before any file is opened: a closed stream's number would go to that file, and what is
    printed into it.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process
    codecs.register_error(_ERRORS, _in_ascii)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


def lost() -> int:
    """Return why something printed on standard output is nowhere, as an error number.

    It is 0 where all is written, or the reader did not want it.
    """
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    why = raw.lost if isinstance(raw, _Lasting) else 0
    return 0 if why == errno.EPIPE else why


def _lasting(stream: IO[str] | None, descriptor: int) -> io.TextIOWrapper:
    if stream is not None:
        stream.flush()
    # Line by line, as on a terminal: a log that is looked at shows what has happened.
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(descriptor)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=_ERRORS,
        line_buffering=True,
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (_IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end
