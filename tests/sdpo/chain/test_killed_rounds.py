"""Three rounds of the demo, killed at random moments, end in the models of an undisturbed chain.

Stages are started as they always are. Forks of a server do not hold the run's lock, and the
environment that a watchdog looks into is the server's: one that lives a little longer than its call
would tell the next one that it was asked to stop.
"""

import json
import random
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from desk import wait_until
from processes import Running, is_free, stages_of, start

from sdpo.store.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NAME, ROUNDS = "demo_rounds", (1, 2, 3)
ROUND = "data.sources.2.generate"
SMALLER = (
    *(f"{ROUND}.per_round=12", f"{ROUND}.held_out=6", f"{ROUND}.unfinished=keep"),
    *(f"{ROUND}.judge.rule=length", "supervised.max_steps=20", "probe.completions=1"),
    *("training.batch_size=2", "training.checkpoint_every=1", "probe.max_pairs=16"),
)
"""The recipe's nodes with less to do in each; a state is saved after every optimizer step."""
KINDS = {
    "samples": r"generate-\d",
    "scores": r"judge-\d",
    "training": r"step-\d",
    "held-out answers": r"held-M_\d",
}
"""The stages that are killed, by the names of their logs."""
KILLS = 20
BYTES = ("prompts", "generated", "scores", "samples", "pairs", "usable")


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of rounds in a folder of its own."""

    folder: Path

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / "runs" / NAME)

    def begin(self) -> Running:
        """The call that begins the chain, and goes on with it."""
        self.folder.mkdir(exist_ok=True)
        settings = [word for setting in SMALLER for word in ("--set", setting)]
        where = ("--runs-dir", self.folder / "runs")
        return start("run", NAME, *settings, *where, log=self.folder / "said.txt")

    def stages(self) -> dict[str, float]:
        """When stages of these kinds were last started, by their names."""
        specs = (self.run.path / "logs").glob("*.json")
        return {path.stem: path.stat().st_mtime for path in specs if kind_of(path.stem)}

    def took_s(self, kind: str) -> float:
        """How long stages of a kind took, the longest."""
        return max(
            (self.run.path / "logs" / f"{name}.events.jsonl").stat().st_mtime - began
            for name, began in self.stages().items()
            if kind_of(name) == kind
        )

    def made(self) -> dict[str, object]:
        """What the chain came to: digests of models, what they were trained on, how, and seen."""
        found: dict[str, object] = {}
        for step in (0, *ROUNDS):
            record = self.run.read_record(f"step-{step}")
            assert record is not None
            found[f"M_{step}"] = record["outputs"]["model"]
        for step in ROUNDS:
            folder = self.run.step(step)
            files = [*(folder / f"{name}.parquet" for name in BYTES), folder / "metrics.jsonl"]
            found |= {str(path.relative_to(self.run.path)): path.read_bytes() for path in files}
        held = sorted(self.run.evaluations.glob("M_*/held-*.parquet"))
        return found | {str(path.relative_to(self.run.path)): path.read_bytes() for path in held}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The chain that nothing disturbed."""
    chain = Chain(tmp_path_factory.mktemp("whole"))
    running = chain.begin()
    assert running.wait(900) == 0, running.said
    return chain


def kind_of(stage: str) -> str:
    """The kind of stage that has such a log; empty: none that is killed."""
    return next((kind for kind, name in KINDS.items() if re.fullmatch(name, stage)), "")


def doing(chain: Chain) -> str:
    """What the chain was doing last: the stage that was started, and the last that this told."""
    specs = (chain.run.path / "logs").glob("*.json")
    told = [path for path in specs if path.with_suffix(".log").is_file()]
    last = max(told, key=lambda path: path.stat().st_mtime)
    phase = "starting"
    with suppress(FileNotFoundError, IndexError):
        text = last.with_suffix(".events.jsonl").read_text(encoding="utf-8")
        event = json.loads(text.splitlines()[-1])
        phase = f"{event.get('phase') or event['event']} {event.get('done', '')}".strip()
    return f"{last.stem}: {phase}"


def test_rounds_that_are_killed_at_random_moments_end_in_the_same_models(
    whole: Chain, tmp_path: Path
) -> None:
    """Every second kill is of the call alone, whose stage has to be gone with it.

    A chain is killed again and again until it ends; then another one begins, until each kind of
    stage was killed as often as any other.
    """
    drawn, expected = random.Random(0), whole.made()
    assert len([name for name in expected if "held-" in name]) == 1 + len(ROUNDS)
    left, ended = Counter(dict.fromkeys(KINDS, KILLS // len(KINDS))), 0
    chain = Chain(tmp_path / "0")
    while left.total():
        running, began = chain.begin(), time.time()
        skipped = drawn.randrange(3)
        stage = next_stage(chain, running, began, set(+left), skipped)
        if not stage:
            assert running.wait() == 0, running.said
            assert chain.made() == expected
            ended += 1
            chain = Chain(tmp_path / str(ended))
            continue
        after_s = drawn.uniform(0, whole.took_s(kind_of(stage)))
        time.sleep(after_s)
        how = kill(chain, running, with_all=bool(left.total() % 2))
        left[kind_of(stage)] -= 1
        number = KILLS - left.total()
        print(f"kill {number} of {how}, {after_s:.1f} s after {stage} began: {doing(chain)}")
    running = chain.begin()
    assert running.wait(900) == 0, running.said
    assert chain.made() == expected
    print(f"{KILLS} kills of {ended + 1} chains; samples, pairs and models are those of the first")


def next_stage(chain: Chain, running: Running, began: float, kinds: set[str], skipped: int) -> str:
    """Wait until a stage of these kinds begins, not counting the first ones; its name.

    Empty: the chain ended before.
    """
    while True:
        ended = running.process.poll() is not None
        new = {name: at for name, at in chain.stages().items() if at > began}
        wanted = sorted(
            (name for name in new if kind_of(name) in kinds), key=lambda name: new[name]
        )
        if len(wanted) > skipped and not ended:
            return wanted[-1]
        if ended:
            return ""
        time.sleep(0.01)


def kill(chain: Chain, running: Running, *, with_all: bool) -> str:
    """SIGKILL to the call, or to all that it has started as well; nothing of it is left."""
    if with_all:
        running.kill_tree()
    else:
        running.process.kill()
        running.wait()
    wait_until(lambda: is_free(chain.run.lock_file), 15, "a free run")
    assert not stages_of(chain.run.path)
    return "the call and its stage" if with_all else "the call"
