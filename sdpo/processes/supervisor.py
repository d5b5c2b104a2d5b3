"""Start a stage, listen to it, and leave nothing behind.

The stage runs in a session of its own with its own log file. Whatever ends the parent, the stage is
ended with it: the child asks the kernel for that (see :func:`die_with_parent`); on every way out of
here all its descendants are terminated, then killed; and where there is no way out, since this
process was killed, a watchdog does the same (:mod:`sdpo.system.watchdog`).
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

from sdpo.errors import DiskFullError, Fault, Interrupted, LowMemoryError, UserError
from sdpo.events import (
    ErrorEvent,
    Event,
    EventReader,
    InterruptedEvent,
    Listener,
    PhaseEvent,
    ProgressEvent,
    ResultEvent,
    StageEvent,
    StateEvent,
)
from sdpo.hooks import Call, plain_call
from sdpo.processes.disk_space import is_full, no_space_message
from sdpo.processes.nodes.rendezvous import SOCKET, goes_to_nodes
from sdpo.processes.spec import Spec
from sdpo.processes.stage_specs import StepSpec
from sdpo.store.links import detach
from sdpo.system.files import write_text
from sdpo.system.interrupts import GRACE_S
from sdpo.system.own_modules import module_path
from sdpo.system.watchdog import MARK, marked, send, watched

_POLL_S = 0.05
_GRACE_S = GRACE_S
_PR_SET_PDEATHSIG = 1
PARENT = "SDPO_PARENT_PID"
"""A process that is to end with the one that started it finds its number here."""
EVENTS = "SDPO_EVENTS_FILE"
"""A process on another node tells its events to this file there, and a member passes them on."""
USER_ERROR_EXIT = 2
DISK_FULL_EXIT = 28
"""The exit code is ENOSPC: where no file can be written any more, it has to say so."""
_INTERRUPTING = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
"""The alarm is the last resort of a stage that was asked to stop (``sdpo.system.interrupts``)."""


def run_stage(
    spec: Spec,
    *,
    listen: Listener,
    keep: Sequence[int] = (),
    call: Call = plain_call,
    rendezvous: int | None = None,
) -> ResultEvent:
    """Run ``spec`` in a child process (or several) and return its result event.

    ``keep``: file descriptors that the child holds as well, so that a lock lasts as long as it
    does. ``call`` runs the wait for each phase of the stage under the phase's name. ``rendezvous``:
    the socket to which other nodes come, where they do.

    Raises:
        UserError: the stage refused what the user gave, or its log is a link.
        DiskFullError: no space was left.
        Interrupted: the stage was asked to stop.
        LowMemoryError: it has lowered its budget, and can be run again.
        Fault: the stage failed; the message names its log.
    """
    path = spec.run / "logs" / f"{spec.name}.json"
    if spec.log.is_symlink():
        raise UserError(f"{spec.log} is a link: a log is added to, so it must be a file of the run")
    detach(spec.log)
    write_text(path, spec.model_dump_json(indent=2))
    spec.events.unlink(missing_ok=True)
    outcome, mark = _Ending(spec, listen), uuid.uuid4().hex
    door = {} if rendezvous is None else {SOCKET: str(rendezvous)}
    keep = (*keep, *([] if rendezvous is None else [rendezvous]))
    listen(StageEvent(stage=spec.name, status="started", log=str(spec.log)))
    with watched(mark, keep=keep), open(spec.log, "ab", opener=never_through_a_link) as log:
        process = subprocess.Popen(
            _command(spec, path),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=stage_environment(spec) | door | {MARK: mark, PARENT: str(os.getpid())},
            pass_fds=tuple(keep),
        )
        try:
            while process.poll() is None or outcome.begins_phase:
                if outcome.phase:
                    call(outcome.phase, outcome.watch, process)
                else:
                    outcome.watch(process)
            outcome.take_rest()
        finally:
            _end(process, mark)
            outcome.take_saved()
    result = outcome.judge(process.returncode)
    listen(StageEvent(stage=spec.name, status="completed", log=str(spec.log)))
    return result


def never_through_a_link(path: str, flags: int) -> int:
    """Open a log, refusing a link in its place: what it leads to would be added to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


class _Ending:
    """An ending is what a stage's events amount to."""

    def __init__(self, spec: Spec, listen: Listener) -> None:
        self.phase = ""
        self._spec = spec
        self._listen = listen
        self._reader = EventReader(spec.events)
        self._first: Event | None = None
        self._result: ResultEvent | None = None
        self._error: ErrorEvent | None = None
        self._interrupted = False

    @property
    def begins_phase(self) -> bool:
        """Return whether the first event of a new phase waits to be passed on within that phase."""
        return self._first is not None

    def take_rest(self) -> None:
        """Pass on what is left of a stage that has ended: its last phases may have been short."""
        while self._take():
            pass

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Pass on events until the next phase begins or the stage ends.

        Raises:
            SdpoError: the stage ended, and not well.
        """
        while process.poll() is None:
            if self._take():
                return
            time.sleep(_POLL_S)
        self.take_rest()
        self.judge(process.returncode)

    def _take(self) -> bool:
        """Pass on what has come; return whether it stopped before a new phase's first event."""
        if self._first:
            first, self._first = self._first, None
            self._heed(first)
        for event in self._reader.read():
            phase = _phase(event, self._spec)
            if phase and phase != self.phase:
                self.phase, self._first = phase, event
                return True
            self._heed(event)
        return False

    def _heed(self, event: Event) -> None:
        match event:
            case ResultEvent():
                self._result = event
            case InterruptedEvent():
                self._interrupted = True
            case ErrorEvent() if event.killed:
                self._error, self._interrupted = event, False
            case ErrorEvent():
                self._error = self._error or event
            case _:
                self._listen(event.model_copy(update={"stage": self._spec.name}))

    def take_saved(self) -> None:
        """Pass on what a stage that had to end saved meanwhile."""
        for event in self._reader.read():
            if isinstance(event, StateEvent) and event.event == "checkpoint":
                self._listen(event)

    def judge(self, code: int) -> ResultEvent:
        spec = self._spec
        if code == 0 and self._result is not None:
            return self._result
        if self._interrupted or -code in _INTERRUPTING:
            raise Interrupted(f"{spec.name} was asked to stop")
        if code == DISK_FULL_EXIT:
            told = self._error.message if self._error else no_space_message(None, [spec.output])
            raise DiskFullError(f"{spec.name}: {told}")
        if self._error and self._error.user:
            raise UserError(self._error.message)
        if self._error and self._error.again:
            raise LowMemoryError(f"{spec.name}: {self._error.message}")
        if self._error:
            raise Fault(f"{spec.name}: {self._error.message} (log: {spec.log})")
        if code > 0 and is_full(spec.run):  # of several processes the launcher keeps the code
            raise DiskFullError(f"{spec.name}: {no_space_message(None, [spec.run])}")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise Fault(f"{spec.name} ended with {how}{_tail(spec.log)} (log: {spec.log})")


def _phase(event: Event, spec: Spec) -> str:
    """Return what the stage is doing, in words; empty where the event does not say."""
    if not isinstance(event, PhaseEvent | ProgressEvent):
        return ""
    stage, phase = spec.name.replace("-", " "), event.phase
    size = event.size if isinstance(event, ProgressEvent) else ""
    name = phase if phase.split(" ")[0] == stage else f"{stage}: {phase}"
    return f"{name} ({size})" if size else name


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1].strip()[:500]}" if lines else ""


def _command(spec: Spec, path: Path) -> list[str]:
    stage = ["-m", "sdpo.stages", str(path)]
    if goes_to_nodes(spec):
        return [sys.executable, "-m", "sdpo.processes.nodes", str(path)]
    if spec.launch.processes == 1 or not spec.in_processes:
        return [sys.executable, *stage]
    return [
        *(sys.executable, "-m", "sdpo.processes.launcher"),
        *("--multi_gpu", "--num_machines", "1", "--num_processes", str(spec.launch.processes)),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("--gpu_ids", "all"),  # else a default configuration of the user's could choose others
        *stage,
    ]


def _is_of_the_host(name: str) -> bool:
    """Return whether a variable is a setting of Prefect, such as its server's password: no stage's.

    The id of the flow run is passed on: processes that a run left behind are found by it.
    """
    return name.startswith("PREFECT_") and name != "PREFECT__FLOW_RUN_ID"


_OF_RANKS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
)
_OF_LAUNCHERS = (
    *("TORCHELASTIC_", "PET_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_", "ROLE_"),
    "ACCELERATE_",
)
"""A launcher of nodes sets these for whom it starts: here they would make a stage one of many, or,
those of accelerate, let it train in another way than the recipe says."""


def _is_for_stages(name: str) -> bool:
    of_launcher = name in _OF_RANKS or name.startswith(_OF_LAUNCHERS)
    return not _is_of_the_host(name) and not of_launcher


def stage_environment(spec: Spec) -> dict[str, str]:
    """Return the variables of a stage's process: this one's, and what its work needs."""
    threads = str(spec.launch.threads)
    environment = {name: os.environ[name] for name in os.environ if _is_for_stages(name)} | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # Threads that sleep at once when they wait cost a quarter of the time, those that spin on
        # starve each other where cores are shared: a step took three times as long. These spin for
        # some microseconds.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
        # One heap for all threads: what a lane frees another one takes, and nobody asks the kernel.
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1"),
        # Arrow's own pool keeps what was freed, a third of what a process needs.
        "ARROW_DEFAULT_MEMORY_POOL": os.environ.get("ARROW_DEFAULT_MEMORY_POOL", "system"),
        "PYTHONUNBUFFERED": "1",
        **module_path(),
        "TOKENIZERS_PARALLELISM": "true" if spec.launch.threads > 1 else "false",
    }
    if spec.launch.device == "cpu":
        adapts = isinstance(spec, StepSpec) and spec.trains and spec.training.lora_r
        if spec.launch.by_engine or adapts:
            # Weights that are gathered for a block's time leave holes in the heap otherwise, half
            # a model in all, and so does what an adapter adds to its module's answer, twice what
            # the backward pass needs: from this size on each has pages of its own, which it gives
            # back.
            own_pages = os.environ.get("MALLOC_MMAP_THRESHOLD_", "1048576")
            environment["MALLOC_MMAP_THRESHOLD_"] = own_pages
        return environment | {"CUDA_VISIBLE_DEVICES": ""}
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        # Micro-batches differ in size: blocks that cannot grow leave holes that nothing fits.
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    # Sums in a fixed order: torch wants the former for it, the latter is flash-attn's.
    order = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    return order | environment


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Terminate what is left of the stage; kill what is left of that after the grace time.

    Whoever asks a second time does not want to wait: then it is killed at once.
    """
    leader = psutil.Process(process.pid) if process.poll() is None else None
    family = {leader, *leader.children(recursive=True)} if leader else set()
    family |= set(marked(mark))
    try:
        for member in family:
            send(member, signal.SIGTERM)
        psutil.wait_procs(family, timeout=_GRACE_S)
    finally:
        for member in family:
            send(member, signal.SIGKILL)
        if leader:
            # Not process.wait(): a signal that came while process.poll() had its lock, and raised
            # what brought us here, has left that lock held, and it would be waited for forever.
            process.returncode = leader.wait()


def terminate_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with_parent() -> None:
    """Do as :func:`terminate_with_parent`, and end at once where the parent is dead already."""
    if sys.platform != "linux":
        return
    terminate_with_parent()
    expected = os.environ.pop(PARENT, "")  # ranks have the launcher for a parent, not us
    if expected and os.getppid() != int(expected):
        sys.exit(128 + signal.SIGTERM)  # it ended before the kernel was asked
