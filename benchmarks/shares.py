"""Measure each rank's own memory as a model is loaded, scored, trained and published.

``python -m benchmarks.shares [--model 0.2B] [--processes 1,2,4] [--json FILE]`` takes the real
stage of a step, one process under `single` and several under `fsdp2`. Sampled is the anonymous
memory of every rank (``Anonymous`` of ``smaps_rollup``): mapped files are not counted, whose memory
the kernel takes back at will.
"""

import argparse
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.ours import step_spec, training_config
from benchmarks.report import MB, table
from benchmarks.workload import Settings, Workload, make
from sdpo.config import LaunchConfig
from sdpo.events import Event, PhaseEvent, ProgressEvent
from sdpo.processes.supervisor import run_stage

PHASES = ("load", "score", "train", "publish")
_EVERY_S = 0.05
_PAIRS = 8


class Watch:
    """A watch samples the ranks of a stage and keeps the most of each phase, in bytes.

    ``most[phase][rank]``; a phase lasts until the stage tells of the next one.
    """

    def __init__(self, spec: Path) -> None:
        self._spec = str(spec)
        self._phase = "load"
        self._ranks: dict[int, psutil.Process] = {}
        self.most: dict[str, dict[int, int]] = {phase: {} for phase in PHASES}

    def listen(self, event: Event) -> None:
        """Take the phase from an event."""
        name = event.phase if isinstance(event, PhaseEvent | ProgressEvent) else ""
        if name in ("load", "train", "publish"):
            self._phase = name
        elif name and self._phase == "load":
            self._phase = "score"

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample while within."""
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(_EVERY_S):
                self._sample()

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _sample(self) -> None:
        if not self._ranks or not all(p.is_running() for p in self._ranks.values()):
            self._ranks = dict(self._found())
        most = self.most[self._phase]
        for rank, process in self._ranks.items():
            most[rank] = max(most.get(rank, 0), _anonymous(process.pid))

    def _found(self) -> Iterator[tuple[int, psutil.Process]]:
        """Yield the stage's ranks, without their launcher."""
        for process in psutil.Process().children(recursive=True):
            try:
                line = process.cmdline()
                if self._spec in line and "sdpo.processes.launcher" not in line:
                    yield int(process.environ().get("RANK", "0")), process
            except psutil.Error:
                continue


def _anonymous(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0
    line = next((each for each in text.splitlines() if each.startswith("Anonymous:")), "")
    return int(line.split()[1]) * 1024 if line else 0


def measure(workload: Workload, folder: Path, *, processes: int, threads: int) -> Watch:
    """Take the step with ``processes`` ranks in ``folder``, and return what was seen."""
    launch = LaunchConfig(
        processes=processes,
        strategy="single" if processes == 1 else "fsdp2",
        device="cpu",
        threads=threads,
    )
    spec = step_spec(
        workload,
        folder,
        training_config(workload, max_steps=2),
        launch,
        cache=folder / "cache",
        phases=("reference", "preference"),
        inputs=dict.fromkeys(("reference", "target"), workload.facts["digest"]),
    )
    watch = Watch(spec.run / "logs" / f"{spec.name}.json")
    with watch.sampling():
        run_stage(spec, listen=watch.listen)
    shutil.rmtree(folder)
    return watch


def main() -> None:
    """Measure as the command line says, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="0.2B", help="a shape of benchmarks/shapes.py")
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdpo-shares-") as temporary:
        root = Path(temporary)
        settings = Settings(
            folder=str(root / "workload"),
            model=given.model,
            pairs=_PAIRS,
            batch_size=_PAIRS,
            max_length=128,
        )
        workload = make(settings)
        found = {
            int(n): measure(workload, root / n, processes=int(n), threads=given.threads).most
            for n in given.processes.split(",")
        }
    weights = 4 * settings.shape.parameters
    largest = 4 * settings.shape.vocabulary * settings.shape.hidden
    print(f"weights {weights / MB:.0f} MB, largest tensor {largest / MB:.0f} MB")
    rows = [
        [str(n), f"{weights / n / MB:.0f}"]
        + [f"{max(most[phase].values(), default=0) / MB:.0f}" for phase in PHASES]
        for n, most in found.items()
    ]
    print(table(["processes", "share, MB", *(f"{phase}, MB" for phase in PHASES)], rows))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
