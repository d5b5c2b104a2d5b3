"""A lock that a killed build has left is removed with a word; one that is held stays."""

import subprocess
import sys

from torch.utils import file_baton

from sdpo.stages import extension_locks
from sdpo.stages.extension_locks import free_extension_locks

HOLDS = """
import runpy, sys, time
assert runpy.run_path(sys.argv[2])["FileBaton"](sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_is_removed_once_its_holder_was_killed(tmp_path):
    lock, said = tmp_path / "py311_cpu" / "shm_comm" / "lock", []
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDS, lock, file_baton.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        free_extension_locks(warn=said.append, folder=tmp_path)
        assert lock.exists(), "somebody holds it"
        assert said == []
        holder.kill()
    free_extension_locks(warn=said.append, folder=tmp_path)
    (line,) = said
    assert str(lock) in line
    assert file_baton.FileBaton(lock).try_acquire(), "the next one does not wait"


def test_a_lock_that_another_rank_takes_while_one_looks_is_left_to_it(tmp_path, monkeypatch):
    """Ranks start at once: both see the lock that was left, and one is the first to remove it."""
    lock, said = tmp_path / "py311_cpu" / "shm_comm" / "lock", []
    lock.parent.mkdir(parents=True)
    lock.touch()
    look = extension_locks._open_files

    def slowly():
        found = list(look())
        lock.unlink()
        assert file_baton.FileBaton(lock).try_acquire()
        return found

    monkeypatch.setattr(extension_locks, "_open_files", slowly)
    free_extension_locks(warn=said.append, folder=tmp_path)
    assert lock.exists()
    assert said == []


def test_without_locks_nothing_is_said(tmp_path):
    said: list[str] = []
    free_extension_locks(warn=said.append, folder=tmp_path / "nothing")
    assert said == []
