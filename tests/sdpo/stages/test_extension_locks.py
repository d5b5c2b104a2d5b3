"""A lock that a killed build has left is removed with a word; one that is held stays."""

import subprocess
import sys

from torch.utils import file_baton

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


def test_without_locks_nothing_is_said(tmp_path):
    said: list[str] = []
    free_extension_locks(warn=said.append, folder=tmp_path / "nothing")
    assert said == []
