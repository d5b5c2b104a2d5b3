"""A sweep of settings: its grid, what it chooses on, what it reports on."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, Values
from command_line import Sdpo, caller
from forked_stages import forked_stages
from histories import contents
from studies import small

from sdpo.config.load import load_recipe, make_config
from sdpo.errors import UserError
from sdpo.report.load import load_run
from sdpo.stats.kl import Estimate
from sdpo.stats.reserve_parts import part_of
from sdpo.study.arms import essence
from sdpo.study.grid import grid_trials, read_overs
from sdpo.study.pareto import Point, front, pareto_figure
from sdpo.study.selection import select
from sdpo.study.split import split
from sdpo.study.sweep import SweepDone, SweepPlan, plan_sweep, run_sweep

OVER = "steps.1.beta=0.05,0.1,0.4"


class Sweep:
    """A sweep that was made: where, of what plan, and what came of it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.plan: SweepPlan = plan_sweep(make_config(bench.values()), over=[OVER])
        with forked_stages():
            self.done: SweepDone = run_sweep(self.plan)

    @property
    def folder(self) -> Path:
        return self.plan.study.path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Sweep:
    """Three betas of the second step; tests only read it."""
    return Sweep(Bench(tmp_path_factory.mktemp("sweep"), small(tiny_recipe)))


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    """``sdpo("sweep", recipe, ...)``: its exit code and what it printed."""
    return caller(capsys)


def test_a_setting_of_the_second_step_trains_and_scores_the_first_once(sweep: Sweep) -> None:
    swept = sweep.done.swept
    assert sum(line.trained for line in swept.found.arms) == 1 + 3
    assert sum(line.shared for line in swept.found.arms) == 2
    assert swept.scorings == {1: 1, 2: 1}
    models = {load_run(sweep.folder / trial.name).records[1].model for trial in sweep.plan.trials}
    assert len(models) == 1
    text = sweep.done.study.page.read_text(encoding="utf-8")
    assert "4 steps were trained and 2 shared" in text
    assert "steps.1.beta is of step 2: positions count from 0" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_six_betas_over_two_steps_are_twelve_trainings_and_seven_scorings(
    tmp_path: Path, sweep: Sweep
) -> None:
    bench = Bench(tmp_path, sweep.bench.recipe)
    betas = [0.05, 0.1, 0.2, 0.3, 0.5, 0.8]
    over = f"training.beta={','.join(map(str, betas))}"
    with forked_stages():
        done = run_sweep(plan_sweep(make_config(bench.values()), over=[over]))
    assert sum(line.trained for line in done.swept.found.arms) == 12
    assert sum(line.shared for line in done.swept.found.arms) == 0
    assert done.swept.scorings == {1: 1, 2: 6}
    keys = [
        json.loads(key.read_text())["model"] for key in bench.folder.glob("cache/logps/*/key.json")
    ]
    runs = [load_run(done.study.path / scored.trial) for scored in done.swept.selection]
    first = {run.records[1].model for run in runs}
    assert len(first) == 6
    assert {run.records[1].inputs["reference"] for run in runs} <= set(keys)
    assert first <= set(keys)


def test_what_chooses_and_what_reports_have_no_prompt_in_common(sweep: Sweep) -> None:
    table = pq.read_table(sweep.folder / "results" / f"{sweep.plan.trials[0].name}.parquet")
    keys = np.array(table["prompt_key"].to_pylist())
    parts = part_of(keys)
    assert set(parts) == {"selection", "report"}
    assert not set(keys[parts == "selection"]) & set(keys[parts == "report"])
    swept = sweep.done.swept
    assert (swept.pairs, swept.found.pairs) == (
        int((parts == "selection").sum()),
        int((parts == "report").sum()),
    )
    again = part_of(keys[::-1])
    assert (again[::-1] == parts).all()


def test_the_parts_are_halves_and_every_pair_of_a_prompt_is_in_one() -> None:
    keys = np.repeat([f"{number:064x}" for number in range(4000)], 2)
    parts = part_of(keys)
    assert (parts[::2] == parts[1::2]).all()
    assert 0.46 < (parts == "selection").mean() < 0.54


def test_the_best_is_that_of_the_selection_part_and_its_number_that_of_the_other(
    sweep: Sweep,
) -> None:
    def accuracy(trial: str, part: str) -> tuple[float, float]:
        rows = pq.read_table(sweep.folder / "results" / f"{trial}.parquet").to_pylist()
        keys = np.array([row["prompt_key"] for row in rows])
        gamma = np.array([row["gamma"] for row in rows])[part_of(keys) == part]
        return float((gamma > 0).mean()), float(gamma.mean())

    swept = sweep.done.swept
    best = max(sweep.plan.trials, key=lambda trial: accuracy(trial.name, "selection"))
    assert swept.best == best.name
    assert swept.found.arms[0].arm == best.arm
    assert swept.found.arms[0].accuracy.mean == pytest.approx(accuracy(best.name, "report")[0])
    assert swept.selection[0].accuracy.mean == pytest.approx(accuracy(best.name, "selection")[0])


def test_the_best_recipe_is_a_file_that_makes_the_same_models(sweep: Sweep) -> None:
    recipe = load_recipe(sweep.done.recipe)
    best = next(trial for trial in sweep.plan.trials if trial.name == sweep.done.swept.best)
    assert best.config is not None
    assert recipe.name == "tiny-best"
    assert essence(recipe) == essence(best.config)
    assert recipe.training_of(2) == best.config.training_of(2)
    assert recipe.data.reserve.compare_on == "report"


def test_the_best_trial_is_compared_later_by_pairs_on_which_it_was_not_chosen(
    sweep: Sweep, tmp_path: Path, sdpo: Sdpo
) -> None:
    copied = sweep.bench.copy_to(tmp_path)
    names = [f"tiny-sweep/{trial.name}" for trial in sweep.plan.trials[:2]]
    said = sdpo("compare", copied.write(), "--arms", ",".join(names), "--json")
    found = json.loads(said.out)
    assert found["pairs"] == sweep.done.swept.found.pairs
    assert found["left_out"] == sweep.done.swept.pairs
    mean = {line.arm: line.accuracy.mean for line in sweep.done.swept.found.arms}
    for line, trial in zip(found["arms"], sweep.plan.trials, strict=False):
        assert line["accuracy"]["mean"] == mean[trial.arm]
    page = (copied.runs / "tiny-compare" / "comparison.html").read_text(encoding="utf-8")
    assert "by which a sweep chose the settings of" in page


def test_a_sweep_that_is_made_already_runs_nothing_and_says_the_same(
    sweep: Sweep, sdpo: Sdpo
) -> None:
    before = contents(sweep.folder / sweep.plan.trials[0].name)
    said = sdpo("sweep", sweep.bench.write(), "--over", OVER)
    assert said.code == 0
    assert "every run is complete: nothing to run" in said.told
    assert "Best by selection: steps.1.beta=" in said.told
    assert "recipe: " in said.told
    assert contents(sweep.folder / sweep.plan.trials[0].name) == before
    numbers = sdpo("sweep", sweep.bench.write(), "--over", OVER, "--json")
    assert json.loads(numbers.out) == sweep.done.swept.as_json()
    other = sdpo("compare", sweep.bench.write(), "--name", "tiny-sweep")
    assert (other.code, "is a sweep of tiny, and not a compare" in other.told) == (2, True)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "which settings are to be swept?"),
        (["training.beta"], "--over training.beta: write it as key=value,value"),
        (["training.beta="], "write it as key=value,value"),
        (["training.beta=0.1"], "the grid has 1 trials"),
        (["training.beta=0.1,0.1"], "a value stands twice"),
        (["training.beta=0.1,0.3", "training.beta=0.5"], "is given twice"),
        (["training.betta=0.1,0.3"], "training.betta: unknown key; did you mean `beta`"),
        (["training.beta=-1,0.3"], "training.beta: Input should be greater than 0"),
        (["training.exo_epsilon=0.1,0.3"], "are the same: nothing would be compared"),
        (["training.beta=0.01..0.3"], "a grid has no ranges: list the values"),
        (["training.beta=0.3..0.01"], "the range is the wrong way round"),
        (["training.beta=log:0..0.3"], "a log scale has no 0"),
        (["training.beta=a..b"], "a range is of two numbers"),
        (["steps.2.beta=0.1,0.3"], "of step 2 it is step-2.beta"),
        (["step-3.beta=0.1,0.3"], "the recipe has 2 steps: the last one's is step-2.beta"),
        (["step-2.beta=0.1,0.3", "steps.1.beta=1,2"], "--over step-2.beta is given twice"),
        (["probe.seed=1,2"], "`probe` changes no model"),
        (["name=a,b"], "`name` changes no model"),
        (["training.beta=[,1"], "is not YAML"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_words_and_leaves_nothing(
    bench: Bench, sdpo: Sdpo, over: list[str], message: str
) -> None:
    options = [word for each in over for word in ("--over", each)]
    said = sdpo("sweep", bench.write(), *options)
    assert (said.code, message in said.told) == (2, True), said.told
    assert not bench.runs.exists()


def test_a_grid_has_every_combination_and_a_name_for_each(tmp_path: Path) -> None:
    config = make_config({"name": "mine", "data": {"sources": [{"path": "a"}, {"path": "b"}]}})
    given = [
        "training.beta=0.01,1e-1",
        "training.lora_target_modules=[q_proj, v_proj],[all-linear]",
    ]
    lora = make_config(config.model_dump() | {"training": {"lora_r": 4}})
    overs = read_overs(given, config=lora, with_ranges=False)
    trials = grid_trials(lora, overs, folder=tmp_path)
    assert [trial.arm for trial in trials][:2] == [
        "beta=0.01, lora_target_modules=['q_proj', 'v_proj']",
        "beta=0.01, lora_target_modules=['all-linear']",
    ]
    assert len({trial.name for trial in trials}) == 4
    assert trials[-1].name == "beta-0.1.lora_target_modules-_all-linear"
    found = [trial.config.training.beta for trial in trials if trial.config]
    assert found == [0.01, 0.01, 0.1, 0.1]


def test_a_step_may_be_named_and_a_grid_is_trained_with_several_seeds(tmp_path: Path) -> None:
    sources = {"sources": [{"path": "a"}, {"path": "b"}]}
    config = make_config({"name": "mine", "data": sources, "store": {"remote": "file:///kept"}})
    overs = read_overs(["step-2.beta=0.1,0.3"], config=config, with_ranges=False)
    trials = grid_trials(config, overs, folder=tmp_path, seeds=2)
    assert [(t.arm, t.name, t.seed) for t in trials] == [
        ("step-2.beta=0.1", "step-2.beta-0.1", 42),
        ("step-2.beta=0.3", "step-2.beta-0.3", 42),
        ("step-2.beta=0.1", "step-2.beta-0.1.seed-43", 43),
        ("step-2.beta=0.3", "step-2.beta-0.3.seed-43", 43),
    ]
    configs = [trial.config for trial in trials if trial.config]
    assert [c.training_of(2).beta for c in configs] == [0.1, 0.3, 0.1, 0.3]
    assert [c.training_of(1).beta for c in configs] == [config.training.beta] * 4
    assert [c.training.seed for c in configs] == [42, 42, 43, 43]
    assert {c.store.remote for c in configs} == {f"file:///kept/{tmp_path.name}"}
    assert [c.name for c in configs] == [trial.name for trial in trials]


def test_settings_are_chosen_by_the_mean_over_their_seeds(sweep: Sweep) -> None:
    from sdpo.study.results import kept

    # One run stands for two seeds of settings of which each is the best once.
    found = [kept(sweep.plan.study, trial.name) for trial in sweep.plan.trials[:2]]
    (one, of_one), (other, of_other) = (each for each in found if each)
    worst = replace(of_one, gamma=-np.abs(of_one.gamma))
    best = replace(of_one, gamma=np.abs(of_one.gamma))
    trials = {
        "a": (one.model_copy(update={"trial": "a", "arm": "x", "seed": 1}), best),
        "b": (one.model_copy(update={"trial": "b", "arm": "x", "seed": 2}), worst),
        "c": (other.model_copy(update={"trial": "c", "arm": "y", "seed": 1}), of_other),
        "d": (other.model_copy(update={"trial": "d", "arm": "y", "seed": 2}), best),
    }
    results = [result for result, _ in trials.values()]
    values = {name: each for name, (_, each) in trials.items()}
    swept = select("made-up", results, values, over=["x"], seed=0)
    chosen = split(of_other, "selection").gamma > 0
    assert swept.best == "c"
    assert swept.selection[0].accuracy.mean == pytest.approx((chosen.mean() + 1) / 2)
    assert swept.selection[1].accuracy.mean == pytest.approx(0.5)
    assert swept.found.seeds == 2


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.05, high=mean + 0.05)


def test_the_front_has_the_trials_that_no_other_beats_in_both() -> None:
    at = {"near": (0.3, 0.6), "beaten": (0.5, 0.55), "best": (0.9, 0.8), "far": (2.0, 0.8)}
    points = [Point(n, n, estimate(kl), estimate(quality)) for n, (kl, quality) in at.items()]
    assert [point.label for point in front(points)] == ["near", "best"]
    drawing = str(pareto_figure(points))
    assert drawing.count("<circle") == 2 * len(points)  # the marks, and a legend
    assert drawing.count('class="whisker') == 2 * len(points)
    assert "far: KL 2.000 [" in drawing
    assert "log scale" not in drawing
    assert str(pareto_figure(points[:1])) == ""


def test_trials_that_are_far_apart_are_drawn_on_a_log_scale() -> None:
    points = [Point(f"{kl}", "a", estimate(kl), estimate(0.5)) for kl in (0.1, 1.0, 50.0)]
    drawing = str(pareto_figure(points))
    assert "log scale" in drawing
    places = [
        float(x)
        for x in re.findall(r'<circle class="f1" cx="([\d.]+)" cy="[\d.]+" r="4.5"', drawing)
    ]
    steps = [later - earlier for earlier, later in itertools.pairwise(places)]
    assert steps[1] / steps[0] == pytest.approx(math.log10(50) / math.log10(10), rel=0.01)


def test_a_reserve_that_cannot_be_split_is_refused(sweep: Sweep) -> None:
    from sdpo.study.results import kept

    found = [kept(sweep.plan.study, trial.name) for trial in sweep.plan.trials]
    results = [each[0] for each in found if each]
    one = {each[0].trial: split(each[1], "selection") for each in found if each}
    options: Any = {"over": ["steps.1.beta"], "seed": 0}
    with pytest.raises(UserError, match="the part of the reserve for report is empty"):
        select("made-up", results, one, **options)
