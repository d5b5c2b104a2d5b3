"""Arms that run side by side: what they share is computed once, and all of them end together."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from bench import Bench, Values
from command_line import Sdpo, caller
from forked_arms import forked_arms
from studies import small

from sdpo.config.load import make_config
from sdpo.errors import ConfigError, Interrupted
from sdpo.events import Event, NodeEvent
from sdpo.hooks import Host
from sdpo.store.logp_cache import rows_by_run
from sdpo.store.run_folder import RunFolder
from sdpo.study.compare import Compared, Plan, plan_comparison, run_comparison
from sdpo.study.side_by_side import places_of
from sdpo.study.sweep import plan_sweep, run_sweep
from sdpo.system import machine

ARMS = "sdpo,dpo,target_base"


class Study:
    """Three arms, of which two share a step, that ran two at a time."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.events = bench, list[Event]()
        self.plan: Plan = plan_comparison(make_config(bench.values()), names=ARMS)
        with forked_arms():
            self.compared: Compared = run_comparison(
                self.plan, side_by_side=2, host=Host(listen=self.events.append)
            )

    @property
    def folder(self) -> Path:
        return self.plan.study.path


@pytest.fixture(scope="module")
def small_recipe(tiny_recipe: Values) -> Values:
    return small(tiny_recipe)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_recipe: Values) -> Study:
    return Study(Bench(tmp_path_factory.mktemp("side"), small_recipe))


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    return caller(capsys)


def test_arms_that_share_no_step_run_at_the_same_time(study: Study) -> None:
    def first(node: str) -> int:
        return next(
            at
            for at, event in enumerate(study.events)
            if isinstance(event, NodeEvent) and event.node == node
        )

    assert first("dpo: data") < first("sdpo: step-2")
    assert first("sdpo: step-2") < first("target_base: data"), "its first step is that of `sdpo`"


def test_no_row_is_scored_twice_and_each_is_counted_with_the_arm_that_scored_it(
    study: Study,
) -> None:
    marks = {RunFolder(study.folder / arm).mark: arm for arm in ARMS.split(",")}
    rows = dict.fromkeys(ARMS.split(","), 0)
    for key in (study.bench.folder / "cache" / "logps").iterdir():
        parts = [pq.read_table(part) for part in key.glob("*.parquet")]
        digests = [digest for part in parts for digest in part["row_digest"].to_pylist()]
        assert len(set(digests)) == len(digests)
        assert not list(key.glob(".tmp-*"))
        for part in key.glob("*.parquet"):
            count, mark = rows_by_run(part)
            rows[marks[mark]] += count
    lines = {line.arm: line.rows_scored for line in study.compared.found.arms}
    assert lines == rows
    assert list(lines) == ARMS.split(","), "in their order, however they ended"


def test_a_step_that_two_arms_make_alike_is_trained_once(study: Study) -> None:
    arms = {line.arm: line for line in study.compared.found.arms}
    assert (arms["sdpo"].trained, arms["sdpo"].shared) == (2, 0)
    assert (arms["target_base"].trained, arms["target_base"].shared) == (1, 1)
    assert study.compared.ran == tuple(ARMS.split(","))


def test_the_models_are_those_of_arms_that_ran_one_after_the_other(
    study: Study, tmp_path: Path
) -> None:
    alone = Bench(tmp_path, study.bench.recipe)
    plan = plan_comparison(make_config(alone.values()), names="dpo,target_base")
    with forked_arms():
        found = run_comparison(plan).found
    rows = {line.arm: line for line in study.compared.found.arms}
    for line in found.arms:
        same = {"rows_scored", "scorings", "seconds", "trained", "shared"}
        assert line.model_dump(exclude=same) == rows[line.arm].model_dump(exclude=same)


def test_the_same_call_again_reads_what_is_complete(study: Study, sdpo: Sdpo) -> None:
    said = sdpo("compare", study.bench.write(), "--arms", ARMS, "--side-by-side", "3")
    assert (said.code, "nothing to run" in said.told) == (0, True), said.told
    assert not list(study.folder.glob(".tmp-*"))


def interrupt_once_there_are(paths: list[Path]) -> None:
    """Send this process what Ctrl-C does, as soon as all of these files are there."""

    def wait() -> None:
        while not all(path.exists() for path in paths):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_ctrl_c_ends_all_of_them_and_one_that_fails_leaves_the_others(
    tmp_path: Path, small_recipe: Values
) -> None:
    bench = Bench(tmp_path, small_recipe)
    plan = plan_comparison(
        make_config(bench.values()),
        names="sdpo,dpo",
        own=["lost:partition.groups=[[questions],[nobody]]"],
    )
    runs = [plan.study.run(name) for name in ("sdpo", "dpo")]
    before = set(psutil.Process().children(recursive=True))
    interrupt_once_there_are([run.path / "step-1" / "metrics.jsonl" for run in runs])
    with pytest.raises((KeyboardInterrupt, Interrupted)), forked_arms():
        run_comparison(plan, side_by_side=3)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not (plan.study.path / "comparison.json").exists()
    with forked_arms():
        done = run_comparison(plan, side_by_side=3)
    assert [(each.trial, "nobody" in each.why) for each in done.failed] == [("lost", True)]
    assert [line.arm for line in done.found.arms] == ["sdpo", "dpo"]
    numbers = json.loads(plan.study.numbers.read_text(encoding="utf-8"))
    assert list(numbers["failed"]) == ["lost"]


def test_a_sweep_over_a_later_step_trains_the_first_one_once(
    tmp_path: Path, small_recipe: Values
) -> None:
    bench = Bench(tmp_path, small_recipe)
    plan = plan_sweep(make_config(bench.values()), over=["step-2.beta=0.05,0.1,0.4"])
    with forked_arms():
        swept = run_sweep(plan, keep="none", side_by_side=2).swept
    assert sum(line.trained for line in swept.found.arms) == 1 + 3
    assert swept.scorings == {1: 1, 2: 1}
    assert not [
        run for trial in plan.trials if (run := plan.study.run(trial.name)).run_file.exists()
    ]


def test_devices_are_divided_among_the_arms(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ((9, 0),) * 5)
    config = make_config(bench.values(), overrides=["launch.device=cuda", "launch.processes=2"])
    trials = plan_comparison(config, names="sdpo,dpo").trials
    assert places_of(trials, 2) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    with pytest.raises(ConfigError, match="3 at a time take 6 CUDA devices, and 5 are here"):
        places_of(trials, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    assert places_of(trials, 2)[1] == {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-d"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["compare", "--side-by-side", "0"], "--side-by-side 0: give 1 or more"),
        (
            [
                *("compare", "--side-by-side", "2"),
                *("--set", "launch.launcher=torchrun", "--set", "launch.device=cpu"),
            ],
            "brings other nodes, which serve one run at a time",
        ),
        (
            ["sweep", "--side-by-side", "2", "--over", "training.beta=1..2", "--trials", "3"],
            "--side-by-side is of a grid",
        ),
    ],
)
def test_what_cannot_run_side_by_side_is_refused_in_words(
    bench: Bench, sdpo: Sdpo, options: list[str], message: str
) -> None:
    command, *rest = options
    said = sdpo(command, bench.write(), *rest)
    assert (said.code, message in said.told) == (2, True), said.told
    assert not bench.runs.exists()
