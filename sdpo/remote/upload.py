"""Upload what a folder has to a store, beside the work that fills the folder.

One thread uploads, another says that the owner lives. Neither ever stops the work: a store that is
slow, fails or is full is tried again, after a pause that grows. The work learns of it by
:meth:`Uploads.said`, which it asks when it likes, since whoever listens to it hears one thread.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdpo.errors import Fault, StoreError
from sdpo.remote.index import Group, Index, KeptFile, object_of, write_index
from sdpo.remote.lease import Lease, LostRunError
from sdpo.remote.place import Place
from sdpo.system.files import file_digest

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_UPLOAD, _SAY = "upload", "say"
_TURN_S = 10.0
"""A last word to the store is waited for so long."""
_BEATS = 3
"""An owner says so many times, in the time after which it counts as dead, that it lives."""


@dataclass(frozen=True, slots=True)
class ToKeep:
    """This file is to be kept; ``sha256`` is what it has to be, "" where nothing says so."""

    path: Path
    sha256: str = ""


Wanted = Mapping[str, Mapping[str, ToKeep]]
"""What the store should have, by group and by path below the run, in order."""


@dataclass(slots=True)
class Uploads:
    """Uploads bring what is wanted to a store until they are closed.

    ``wanted`` says what that is now; ``index`` is what the store has; ``is_passing`` names the
    groups that are dropped as soon as they are no longer wanted.
    """

    lease: Lease
    index: Index
    wanted: Callable[[], Wanted]
    is_passing: Callable[[str], bool]
    lost: LostRunError | None = field(default=None, init=False)
    left: set[str] = field(default_factory=set, init=False)
    """These groups could not be uploaded: a file is gone, or is not what it has to be."""
    _said: list[str] = field(default_factory=list, init=False)
    _troubles: dict[str, str] = field(default_factory=dict, init=False)
    _asked: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)
    _moved_s: float = field(default_factory=time.monotonic, init=False)
    _is_closed: bool = field(default=False, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _saying: threading.Lock = field(default_factory=threading.Lock, init=False)
    _digests: dict[Path, tuple[tuple[int, int, int], str]] = field(default_factory=dict, init=False)

    @property
    def place(self) -> Place:
        """Return where it is kept."""
        return self.lease.place

    def start(self) -> None:
        """Begin to upload and to say that this process lives."""
        for work in (self._upload_on, self._say_on):
            threading.Thread(target=work, name=f"sdpo{work.__name__}", daemon=True).start()

    def ask(self) -> None:
        """Look soon whether there is something new to upload."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def said(self) -> list[str]:
        """Return what is to be told since the last call: troubles with the store, and their end."""
        with self._changed:
            told, self._said = self._said, []
        return told

    def finish(self, *, patience_s: float, at_most_s: float = float("inf")) -> str:
        """Wait until all is uploaded; return "" or why it is not.

        It is given up where nothing has moved for ``patience_s`` seconds, or after ``at_most_s``.
        """
        self.ask()
        end = time.monotonic() + at_most_s
        with self._changed:
            self._moved_s = time.monotonic()
            while self._done < self._asked and self.lost is None:
                left = min(end, self._moved_s + patience_s) - time.monotonic()
                if left <= 0:
                    return self._troubles.get(_UPLOAD) or "the store takes too long"
                self._changed.wait(left)
        return ""

    def close(self) -> None:
        """Stop uploading, and give the run back where the store answers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        # In a thread of its own: a store that hangs does not keep the end of the work.
        saying = threading.Thread(target=self._say_ended, name="sdpo_say_ended", daemon=True)
        saying.start()
        saying.join(_TURN_S)

    def _say_ended(self) -> None:
        with self._saying:  # not while another word is under way
            try:
                if self.lost is None:
                    self.lease.say(ended=True)
            except (LostRunError, StoreError) as error:
                self._tell(str(error))

    def _upload_on(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._asked > self._done)
                if self._is_closed:
                    return
                asked = self._asked
            try:
                self._upload()
            except LostRunError as error:
                self._lose(error)
                return
            except (Fault, OSError) as error:
                self._stumble(_UPLOAD, str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, timeout=pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _FIRST_PAUSE_S
            self._recover(_UPLOAD)
            with self._changed:
                self._done = asked
                self._changed.notify_all()

    def _upload(self) -> None:
        """Upload what is new, group by group; each counts when the index has it.

        Raises:
            StoreError, LostRunError, OSError: it cannot be done now.
        """
        wanted, left = self.wanted(), set()
        for name, files in wanted.items():
            try:
                group = self._kept(files)
                if group is None:
                    left.add(name)
                elif group != self.index.groups.get(name):
                    for path, file in group.items():
                        self._put(files[path].path, file)
                    self._write(dict(self.index.groups) | {name: group})
            except FileNotFoundError:  # it was removed or replaced meanwhile
                left.add(name)
        self.left = left
        passing = {name for name in self.index.groups if self.is_passing(name)} - wanted.keys()
        if passing:
            self._write({k: v for k, v in self.index.groups.items() if k not in passing})

    def _kept(self, files: Mapping[str, ToKeep]) -> Group | None:
        """Return what the files are now; None where one is not what it has to be.

        Raises:
            FileNotFoundError: one is gone.
        """
        group: dict[str, KeptFile] = {}
        for path, file in files.items():
            digest, size = self._digest(file.path), file.path.stat().st_size
            if file.sha256 and digest != file.sha256:
                return None
            group[path] = KeptFile(sha256=digest, bytes=size)
        return group

    def _digest(self, path: Path) -> str:
        status = path.stat()
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._digests.get(path)
        if known is None or known[0] != mark:
            known = self._digests[path] = (mark, file_digest(path))
        return known[1]

    def _put(self, path: Path, file: KeptFile) -> None:
        name = object_of(file.sha256)
        if self.place.size(name) != file.bytes:
            self.place.put(path, name, sha256=file.sha256)
        with self._changed:
            self._moved_s = time.monotonic()
            self._changed.notify_all()

    def _write(self, groups: Mapping[str, Group]) -> None:
        """Write the next index, then remove what only passing groups of the last one had."""
        self.lease.check()
        before = self.index
        number = (self.lease.number, before.number[1] + 1)
        index = Index(before.run, groups, number)
        write_index(self.place, index)
        self.index = index
        passed = {
            file.sha256
            for name, group in before.groups.items()
            if self.is_passing(name)
            for file in group.values()
        }
        for digest in passed - index.digests():
            self.place.delete(object_of(digest))

    def _say_on(self) -> None:
        every_s = self.lease.owner.silence_s / _BEATS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, timeout=every_s)
                if self._is_closed or self.lost:
                    return
            with self._saying:
                if not self._is_closed:
                    self._say()

    def _say(self) -> None:
        try:
            self.lease.say()
        except LostRunError as error:
            self._lose(error)
        except Fault as error:
            self._stumble(_SAY, str(error))
        else:
            self._recover(_SAY)

    def _lose(self, error: LostRunError) -> None:
        with self._changed:
            self.lost = self.lost or error
            self._changed.notify_all()

    def _stumble(self, what: str, why: str) -> None:
        with self._changed:
            is_new, self._troubles[what] = not self._troubles, why
        if is_new:
            self._tell(f"the remote store: {why}. The run goes on, and it is tried again")

    def _recover(self, what: str) -> None:
        with self._changed:
            was = self._troubles.pop(what, "")
            is_over = bool(was) and not self._troubles
        if is_over:
            self._tell("the remote store answers again")

    def _tell(self, text: str) -> None:
        with self._changed:
            self._said.append(text)
