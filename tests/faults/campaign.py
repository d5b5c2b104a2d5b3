"""The whole campaign of faults: random deaths, random damage, full disks, clocks, crowds, limits.

    python tests/faults/campaign.py [--share 0.1] [--only kills] [--seed 0] [--folder DIR] [--plain]

A run of two steps over the demo's data is made once without disturbance; then it is made again and
again, each time with something in its way, and brought to its end afterwards. Kills come at a
moment drawn from the run's computing time, which other work on the machine does not stretch.
What must hold: M_2, the metrics and what was measured are those of the undisturbed run, or the call
refuses with a message that names the file; never another result, never a traceback.
``EXPECTED`` says how many trials of each kind must hold; the last lines are a summary, and the exit
code is 1 where any did not, or where fewer were tried. ``--share`` asks for that part of each.
"""

import argparse
import io
import json
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from forked_stages import forked_stages
from processes import Running, stages_of, start
from trials import clocks, closed_files, crowds, full_disks, limits

from flows.cli.app import run_app
from sdpo.inputs import demo
from sdpo.store.run_folder import RunFolder

EXPECTED = {
    "kills": 16,
    "flips named": 80,
    "damages": 44,
    "full disks": 24,
    "clocks": 5,
    "commands at once": 29,
    "limits": 9,
    "closed files": 137,
}
"""How many trials of each kind have held, all that there were."""
NAME, STEPS = "campaign", (1, 2)
RECIPE = {
    "name": NAME,
    "data": {"limit": 40, "max_length": 160},
    "training": {"learning_rate": 1e-3, "batch_size": 4, "epochs": 3, "checkpoint_every": 3},
    "launch": {"device": "cpu", "threads": 1},
    "probe": {
        "completions": 1,
        "completion_tokens": 4,
        "bootstrap_resamples": 100,
        "kl_prompts": 2,
        "kl_tokens": 8,
    },
    "steps": [{"reference": "guided"}, {"reference": "base"}],
}
"""Every kind of node: a guide, a reference that is scored by itself, KL."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to, by step: digests of its models, its metrics, and what was measured."""

    models: tuple[str, ...]
    metrics: tuple[str, ...]
    measured: tuple[str, ...]


@dataclass(slots=True)
class Campaign:
    """Where it works, its random numbers, and what it found."""

    folder: Path
    drawn: random.Random
    model: Path
    sources: dict[str, Path]
    whole: Result | None = None
    plain: bool = False
    cpu_s: float = 0.0
    name: str = NAME
    case: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def trial(self, kind: str, case: str) -> Iterator[None]:
        """Count a trial, and whether it held; what it raises is a fault of it."""
        before, self.case = len(self.faults), case
        self.tried[kind] += 1
        try:
            yield
        except Exception:  # noqa: BLE001 - the campaign goes on
            self.fault(traceback.format_exc()[-1000:])
        self.held[kind] += len(self.faults) == before

    def expect(self, holds: bool, what: str) -> None:
        """Keep ``what`` as a fault where something does not hold."""
        if not holds:
            self.fault(what)

    def call(self, *arguments: object) -> tuple[int, str]:
        """``sdpo`` in this process: see :func:`call`."""
        return call(*arguments)

    def place(self, name: str) -> Path:
        """An empty folder with the recipe in it."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        sources = [{"name": name, "path": str(path)} for name, path in self.sources.items()]
        probe = RECIPE["probe"] | ({"kl_prompts": 0} if self.plain else {})  # type: ignore[operator]
        recipe = RECIPE | {
            "probe": probe,
            "steps": [] if self.plain else RECIPE["steps"],
            "model": {"name_or_path": str(self.model)},
            "data": RECIPE["data"] | {"sources": sources},  # type: ignore[operator]
            "store": {"runs_dir": str(place / "runs")},
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return place

    def run(self, place: Path) -> Running:
        """``sdpo run`` there, in processes of its own."""
        return start("run", place / "recipe.yaml", log=place / "said.txt")

    def fault(self, what: str) -> None:
        """Keep what did not hold."""
        self.faults.append(f"{self.case}: {what}")
        print(f"  FAULT {what}", flush=True)

    def check(self, place: Path, *, name: str = NAME) -> None:
        """The run there came to what the undisturbed one came to."""
        found = result_of(place / "runs" / name)
        if self.whole and found.models != self.whole.models:
            self.fault(f"models {found.models} instead of {self.whole.models}")
        if self.whole and found.metrics != self.whole.metrics:
            self.fault("other lines in metrics.jsonl")
        if self.whole and found.measured != self.whole.measured:
            self.fault("other numbers in gamma.json or kl.json")
        left = [path.name for path in (place / "runs").rglob(".tmp-*")]
        left += [str(path) for path in (place / "runs").rglob("resume")]
        if left:
            self.fault(f"left behind: {left}")

    def verify(self, place: Path, *, whole: bool) -> str:
        """What ``sdpo verify`` says of the run; nothing where it finds no fault."""
        code, said = call("verify", NAME, "--runs-dir", place / "runs")
        if "Traceback" in said:
            self.fault(f"verify: {said[-500:]}")
        if whole and code:
            self.fault(f"verify finds faults in a run that is whole: {said[-500:]}")
        return "" if code == 0 else said


def result_of(run: Path) -> Result:
    """Models and metrics of a finished run."""
    folder = RunFolder(run)
    records = [folder.read_record(f"step-{step}") for step in STEPS]

    def texts(name: str) -> tuple[str, ...]:
        paths = [folder.step(step) / name for step in STEPS]
        return tuple(p.read_text(encoding="utf-8") if p.is_file() else "none" for p in paths)

    return Result(
        models=tuple(record["outputs"]["model"] if record else "none" for record in records),
        metrics=texts("metrics.jsonl"),
        measured=texts("gamma.json") + texts("kl.json"),
    )


def undisturbed(campaign: Campaign) -> Path:
    """Make the run by which all others are judged."""
    place = campaign.place("whole")
    running = campaign.run(place)
    while running.process.poll() is None:
        campaign.cpu_s = max(campaign.cpu_s, running.cpu_s())
        time.sleep(0.05)
    assert running.process.returncode == 0, running.said
    campaign.whole = result_of(place / "runs" / NAME)
    print(f"undisturbed: {campaign.cpu_s:.1f} s of computing, M_2 {campaign.whole.models[1][:16]}")
    return place


def moment_of(run: Path) -> str:
    """What a run was doing last, by its events and what stands half written."""
    half = [path.name for path in run.rglob(".tmp-*") if path.parent.name.startswith("step-")]
    if any("-model-" in name for name in half):
        return "publishing a model"
    if list(run.glob("step-*/resume/.tmp-*")):
        return "saving a resume state"
    events = sorted((run / "logs").glob("*.events.jsonl"), key=lambda path: path.stat().st_mtime)
    logs = sorted((run / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return "before the first stage"
    stage = logs[-1].stem
    if not events or events[-1].name.split(".")[0] != stage:
        return f"{stage}: starting"
    last: dict[str, object] = {}
    for line in events[-1].read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            last = json.loads(line)
    return f"{stage}: {last.get('phase') or last.get('event')}"


def kills(campaign: Campaign, count: int, finished: Path) -> None:
    """The whole process tree is killed at random moments, one in every slice of the run."""
    slices = list(range(count))
    campaign.drawn.shuffle(slices)
    for done, at in enumerate(slices):
        moment_s = campaign.cpu_s * (at + campaign.drawn.random()) / count
        with campaign.trial("kills", f"kill {done + 1}"):
            _kill(campaign, moment_s, by_name=bool(done % 2))


def _kill(campaign: Campaign, moment_s: float, *, by_name: bool) -> None:
    place = campaign.place("killed")
    run = place / "runs" / NAME
    running = campaign.run(place)
    while running.process.poll() is None and running.cpu_s() < moment_s:
        time.sleep(0.01)
    running.kill_tree()
    moment = moment_of(run) if run.is_dir() else "before the run's folder"
    campaign.seen[moment] += 1
    campaign.expect(not stages_of(run), "a stage survived")
    there = (run / "run.yaml").is_file()
    again = ("resume", NAME, "--runs-dir", place / "runs") if there and by_name else None
    code, said = call(*(again or ("run", place / "recipe.yaml", "--name", NAME)))
    word = "goes on after" if "goes on after" in said else "from its last complete node"
    print(f"{campaign.case} after {moment_s:.1f} s, {moment}: {word}, exit {code}", flush=True)
    if code:
        campaign.fault(said[-500:])
    else:
        campaign.check(place)
        campaign.verify(place, whole=True)


def call(*arguments: object) -> tuple[int, str]:
    """``sdpo`` in this process, its stages forks of a server: exit code, and what it said."""
    said = io.StringIO()
    with forked_stages(), redirect_stdout(said), redirect_stderr(said):
        try:
            code = run_app([str(argument) for argument in arguments])
        except Exception:  # noqa: BLE001 - what escapes is told, and a fault of the case
            traceback.print_exc()
            code = 1
    return code, " ".join(said.getvalue().split())


def _flip(path: Path, drawn: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    path.write_bytes(bytes(content))


def _cut(path: Path, drawn: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: drawn.randrange(len(content))])


def _remove(path: Path, _drawn: random.Random) -> None:
    path.unlink()


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": _flip,
    "cut": _cut,
    "removed": _remove,
}


def files_of(place: Path) -> Iterator[Path]:
    """Files of the run and of the caches that hold results; logs and locks are not."""
    for root in (place / "runs" / NAME, place / "cache"):
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root).parts
            if not path.is_file() or {"logs", "tracking"} & set(inside):
                continue
            if path.stat().st_size and not path.name.startswith(".") and path.suffix != ".lock":
                yield path


def flips(campaign: Campaign, count: int, finished: Path) -> None:
    """One bit of one file of a finished run is another: verify names the file."""
    place = campaign.place("flipped")
    shutil.copytree(finished / "runs", place / "runs")
    files = [path for path in files_of(place) if path.is_relative_to(place / "runs")]
    for number in range(count):
        path = campaign.drawn.choice(files)
        with campaign.trial("flips named", f"flip {number + 1}, {path.relative_to(place)}"):
            content = path.read_bytes()
            _flip(path, campaign.drawn)
            said = campaign.verify(place, whole=False)
            campaign.expect(path.name in said, f"verify does not name it: {said[-300:]}")
            path.write_bytes(content)
    print(f"{count} bits flipped", flush=True)


def damages(campaign: Campaign, count: int, finished: Path) -> None:
    """One file of a finished run or of its caches is damaged; then the run is asked for again.

    A finished run does not read the caches: after damage there, a new run of the same recipe is
    made from them.
    """
    for number in range(count):
        place = campaign.place("damaged")
        for name in ("runs", "cache"):
            shutil.copytree(finished / name, place / name)
        path = campaign.drawn.choice(list(files_of(place)))
        how = campaign.drawn.choice(list(DAMAGE))
        with campaign.trial("damages", f"damage {number + 1}, {path.relative_to(place)} {how}"):
            DAMAGE[how](path, campaign.drawn)
            _ask_again(campaign, place, path, how)


def _ask_again(campaign: Campaign, place: Path, path: Path, how: str) -> None:
    in_cache = path.is_relative_to(place / "cache")
    said = campaign.verify(place, whole=False)
    name = "another" if in_cache else NAME
    if not in_cache:
        campaign.expect(path.name in said, f"verify does not name it: {said[-300:]}")
    named = "verify names it" if path.name in said else "verify is silent"
    code, again = call("run", place / "recipe.yaml", "--name", name)
    campaign.expect("Traceback" not in again, again[-500:])
    if code == 0:
        word = "the same result"
        campaign.check(place, name=name)
        if not in_cache and path.name != "run.yaml.sha256":  # which a person must put back
            campaign.verify(place, whole=True)
    else:
        word = "refused"
        is_named = path.name in again or "made from something else" in again
        campaign.expect(is_named, f"the refusal does not name {path.name}: {again[-300:]}")
    campaign.seen[f"{how}: {word}"] += 1
    print(f"{campaign.case}: {named}; {word}, exit {code}", flush=True)


TRIALS: dict[str, Callable[[Campaign, int, Path], None]] = {
    "kills": kills,
    "flips named": flips,
    "damages": damages,
    "full disks": full_disks,
    "clocks": clocks,
    "commands at once": crowds,
    "limits": limits,
    "closed files": closed_files,
}


def main() -> int:
    """Run the campaign and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--share", type=float, default=1.0, help="This part of every kind.")
    parser.add_argument("--only", choices=EXPECTED, action="append", help="These kinds alone.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="Without guide and KL: quicker.")
    parser.add_argument("--folder", type=Path, help="Where to work; else a temporary folder.")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="sdpo-faults-"))).absolute()
    names = ("tiny-llama", "questions", "requests")
    model, *files = (demo.materialise(f"demo:{name}", folder / "inputs") for name in names)
    sources = dict(zip(names[1:], files, strict=True))
    campaign = Campaign(folder, random.Random(given.seed), model, sources, plain=given.plain)
    finished = undisturbed(campaign)
    expected = {
        kind: math.ceil(number * given.share)
        for kind, number in EXPECTED.items()
        if kind in (given.only or EXPECTED)
    }
    for kind, number in expected.items():
        TRIALS[kind](campaign, number, finished)
    return summary(campaign, expected, seed=given.seed)


def summary(campaign: Campaign, expected: Mapping[str, int], *, seed: int) -> int:
    """Print what held; 1 where something did not, or was not tried as often as it had to be."""
    print(f"\nseed {seed}")
    for what, times in sorted(campaign.seen.items()):
        print(f"  {times:3d}  {what}")
    for kind, number in expected.items():
        print(f"{kind}: {campaign.held[kind]} of {campaign.tried[kind]} held, {number} must")
    print(f"{len(campaign.faults)} faults")
    for fault in campaign.faults:
        print(f"  {fault}")
    return int(bool(campaign.faults) or any(campaign.held[k] < n for k, n in expected.items()))


if __name__ == "__main__":
    sys.exit(main())
