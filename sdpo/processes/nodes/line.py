"""Speak words over a connection: sent whole, read by a thread, silence noticed."""

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from sdpo.processes.nodes.words import MOST_BYTES, SILENCE_S, Word, word_of


class LineError(Exception):
    """A connection ended, was silent for too long, or brought something that is no word."""


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice within :data:`SILENCE_S` that the other machine is gone (Linux)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Line:
    """A line is one end of a connection.

    ``hear`` gets every word, in a thread of its own, and at the end why there come no more.
    Before the first word the other side may be silent as long as it likes.
    """

    def __init__(
        self, connection: socket.socket, hear: "Callable[[Line, Word | LineError], None]"
    ) -> None:
        keep_alive(connection)
        connection.settimeout(None)
        self._connection, self._hear = connection, hear
        self._sending = threading.Lock()

    def listen(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, word: Word) -> None:
        """Send a word.

        Raises:
            LineError: the other side takes nothing any more.
        """
        line = word.model_dump_json().encode() + b"\n"
        try:
            with self._sending:
                self._connection.sendall(line)
        except OSError as error:
            raise LineError(f"the connection broke ({error})") from error

    def close(self) -> None:
        """End the connection, for a thread that reads too."""
        with suppress(OSError):  # the other side was faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(MOST_BYTES):
                    self._connection.settimeout(SILENCE_S)
                    self._hear(self, word_of(line))
            ending = LineError("the connection was closed")
        except TimeoutError:
            ending = LineError(f"nothing was heard for {SILENCE_S:.0f} s")
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            said = "what came is no word" if isinstance(error, ValidationError) else str(error)
            ending = LineError(f"the connection broke ({said})")
        self._hear(self, ending)


class Box:
    """A box takes what several lines hear, for one thread to heed."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Line, Word | LineError]] = queue.Queue()

    def put(self, line: Line, word: Word | LineError) -> None:
        """Take a word in."""
        self._queue.put((line, word))

    def take(self, timeout_s: float) -> tuple[Line, Word | LineError] | None:
        """Return the next word and whose it is; None where none comes in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
