"""Run a program in a process of its own, and measure what it takes: seconds, CPU, memory.

As a program (``python -m benchmarks.measured OUT IMPORTS MODULE ARGUMENT...``) it imports what
the module will need, notes the memory, runs the module and writes what it took. The peak is the
kernel's for this process image (VmHWM); ru_maxrss would be inherited from whoever started it.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil

STEP_IMPORTS = ("sdpo.stages.step", "transformers.models.llama.modeling_llama", "accelerate")
TOKENISE_IMPORTS = (
    "sdpo.stages.tokenise",
    "torch",
    "transformers.models.auto.tokenization_auto",
    "transformers.processing_utils",  # the first tokenizer that is loaded brings it in
)
TRL_IMPORTS = (
    "benchmarks.theirs",
    "trl",
    "trl.trainer.dpo_trainer",
    "datasets",
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Usage is what a process took: seconds and bytes.

    ``wall_s`` and ``cpu_s`` (user and system) include the imports, which have numbers of their own.
    ``device_*_bytes`` are 0 without a GPU.
    """

    wall_s: float
    cpu_s: float
    imports_s: float
    imports_cpu_s: float
    imports_bytes: int
    peak_bytes: int
    device_allocated_bytes: int = 0
    device_reserved_bytes: int = 0

    @property
    def net_bytes(self) -> int:
        """Return the peak without what importing alone takes."""
        return self.peak_bytes - self.imports_bytes

    @property
    def work_s(self) -> float:
        """Return the seconds without importing."""
        return self.wall_s - self.imports_s


@dataclass(slots=True)
class MeasuredStages:
    """Measured stages are the usage of every stage that ran, by the stage's name."""

    folder: Path
    usage: dict[str, Usage] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what the stages wrote."""
        for path in self.folder.glob("*.usage.json"):
            self.usage[path.name.removesuffix(".usage.json")] = read_usage(path)


@contextmanager
def measured_stages(folder: Path) -> Iterator[MeasuredStages]:
    """Measure every stage that the supervisor starts within it, each of one process.

    Only the command changes: environment, session and log are the supervisor's.
    """
    import sdpo.processes.supervisor

    stages = MeasuredStages(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        assert list(command[1:3]) == ["-m", "sdpo.stages"], "stages of one process are measured"
        name = Path(command[3]).stem
        imports = TOKENISE_IMPORTS if name == "tokenise" else STEP_IMPORTS
        wrapped = measured_command(
            folder / f"{name}.usage.json", imports, "sdpo.stages", *command[3:]
        )
        return subprocess.Popen(wrapped, **options)

    quick = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    with patch.object(sdpo.processes.supervisor, "subprocess", quick):
        yield stages
    stages.read()


def measured_command(out: Path, imports: Sequence[str], module: str, *arguments: str) -> list[str]:
    """Return the command that runs ``module`` and writes what it took to ``out``."""
    own = [sys.executable, "-m", "benchmarks.measured", str(out), ",".join(imports)]
    return [*own, module, *arguments]


class OutOfMemoryKill(RuntimeError):
    """A program was killed by SIGKILL: on a machine whose memory is full, by its kernel."""


def run_measured(
    out: Path,
    imports: Sequence[str],
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
) -> Usage:
    """Run ``module`` in a process of its own; its output goes to a log beside ``out``.

    Raises:
        OutOfMemoryKill: the kernel killed it.
        RuntimeError: it failed; the message ends with the end of its log.
    """
    command = measured_command(out, imports, module, *arguments)
    _run(command, log=out.with_suffix(".log"), environment=environment)
    return read_usage(out)


def run_module(
    module: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run ``module`` in a process of its own, unmeasured.

    Raises:
        RuntimeError: it failed; the message ends with the end of its log.
    """
    _run([sys.executable, "-m", module, *arguments], log=log, environment=environment)


def _run(command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None) -> None:
    with log.open("wb") as stream:
        code = subprocess.run(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ) | dict(environment or {}),
            check=False,
        ).returncode
    _check(code, command, log)


def _check(code: int, command: Sequence[str], log: Path) -> None:
    if code:
        tail = log.read_text(errors="replace")[-2000:]
        said = " ".join(command)
        kind = OutOfMemoryKill if code == -signal.SIGKILL else RuntimeError
        raise kind(f"`{said}` ended with exit code {code} (log: {log}):\n{tail}")


@dataclass(frozen=True, slots=True)
class FamilyUsage:
    """A family's usage is what a command took with all that it started.

    ``peak_bytes`` adds up the resident memory of its processes, shared pages counted in each;
    ``peak_private_bytes`` their anonymous memory (RssAnon), by the stage that ran at the time, ""
    where none did.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    peak_private_bytes: dict[str, int]


def run_family(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    every_s: float = 0.05,
) -> FamilyUsage:
    """Run ``command`` and sample the memory of its whole family every ``every_s`` seconds.

    Raises:
        RuntimeError: it failed; the message ends with the end of its log.
    """
    before, start = _children_cpu_s(), time.perf_counter()
    resident, private = 0, dict[str, int]()
    with log.open("wb") as stream:
        process = psutil.Popen(
            list(command),
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ) | dict(environment or {}),
        )
        while process.poll() is None:
            family = _family(process)
            resident = max(resident, sum(status_bytes("VmRSS", pid) for pid in family))
            stage, anonymous = _stage(family), sum(status_bytes("RssAnon", pid) for pid in family)
            private[stage] = max(private.get(stage, 0), anonymous)
            time.sleep(every_s)
    wall = time.perf_counter() - start
    _check(process.returncode, command, log)
    return FamilyUsage(wall, _children_cpu_s() - before, resident, private)


def _family(process: psutil.Process) -> list[int]:
    """Return the process and its descendants, without those that it is just starting.

    Until such a child becomes its own program it shows all pages of its parent, which it shares.
    """
    try:
        children = [child.pid for child in process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    own = _words(process.pid)
    return [process.pid, *(pid for pid in children if _words(pid) != own)]


def _words(pid: int) -> list[str]:
    """Return the command line of a process; empty where it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return []


def _stage(family: Sequence[int]) -> str:
    """Return the name of the stage among these processes, by its command line; "" without one."""
    for pid in family:
        words = _words(pid)
        if "sdpo.stages" in words:
            return Path(words[words.index("sdpo.stages") + 1]).stem
    return ""


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_usage(path: Path) -> Usage:
    """Return what a measured program wrote of its usage."""
    return Usage(**json.loads(path.read_text(encoding="utf-8")))


def status_bytes(name: str, pid: int | str = "self") -> int:
    """Return the bytes of a field of /proc/PID/status: VmHWM, VmRSS, RssAnon; 0 if it ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(values[0]) * 1024 if values else 0


def cpu_s() -> float:
    """Return the user and system seconds of this process and of its children that ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usages = [resource.getrusage(kind) for kind in kinds]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _device_bytes() -> tuple[int, int]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0, 0
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def main() -> None:
    """Run the module that the command line names, and write what it took, even where it fails."""
    out, imports, module, *arguments = sys.argv[1:]
    start = time.perf_counter()
    for name in filter(None, imports.split(",")):
        importlib.import_module(name)
    imports_s, imports_cpu = time.perf_counter() - start, cpu_s()
    imports_bytes = status_bytes("VmRSS")
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        allocated, reserved = _device_bytes()
        usage = Usage(
            wall_s=time.perf_counter() - start,
            cpu_s=cpu_s(),
            imports_s=imports_s,
            imports_cpu_s=imports_cpu,
            imports_bytes=imports_bytes,
            peak_bytes=status_bytes("VmHWM"),
            device_allocated_bytes=allocated,
            device_reserved_bytes=reserved,
        )
        Path(out).write_text(json.dumps(asdict(usage)), encoding="utf-8")


if __name__ == "__main__":
    main()
