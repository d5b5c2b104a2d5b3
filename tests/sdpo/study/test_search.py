"""A search of settings with Optuna: what it proposes, that it goes on, what it ends early."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import Bench, Outcome, Values
from command_line import Sdpo, caller
from forked_stages import forked_stages
from studies import small

from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.errors import UserError
from sdpo.hooks import Host
from sdpo.store.run_folder import RunFolder
from sdpo.study.grid import read_overs, trials_at
from sdpo.study.search import Pruned, SearchPlan, _open, _point, _watched, plan_search, run_search
from sdpo.study.sweep import SweepDone

OVER = ("steps.1.beta=log:0.02..0.9", "steps.1.objective=dpo,ipo")


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    """``sdpo("sweep", recipe, ...)``: its exit code and what it printed."""
    return caller(capsys)


@pytest.fixture(scope="module")
def searched_recipe(tiny_recipe: Values) -> Values:
    """The tiny recipe with two optimizer steps a step."""
    return small(tiny_recipe)


Search = tuple[Bench, SearchPlan, SweepDone]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, searched_recipe: Values) -> Search:
    """Three trials, the third of which had been proposed when the search was stopped."""
    optuna = pytest.importorskip("optuna")
    bench = Bench(tmp_path_factory.mktemp("search"), searched_recipe)
    config = make_config(bench.values())
    with forked_stages():
        run_search(planned(config, trials=2))
        plan = planned(config, trials=3)
        db = _open(plan)
        db.sampler = optuna.samplers.TPESampler(seed=config.training.seed + 2)
        from sdpo.study.search import _distributions

        db.ask(_distributions(plan.overs))
        return bench, plan, run_search(plan)


def planned(config: RunConfig, *, trials: int, over: Any = OVER) -> SearchPlan:
    return plan_search(config, over=over, trials=trials, prune=False)


@pytest.mark.slow
def test_a_search_goes_on_with_the_trial_that_was_under_way(search: Search) -> None:
    _, plan, done = search
    assert len(done.ran) == 1
    assert done.ran[0].startswith("t2.")
    trials = _open(plan).trials
    assert [str(trial.state.name) for trial in trials] == ["COMPLETE"] * 3
    told = {trial.number: trial.value for trial in trials}
    for scored in done.swept.selection:
        number = int(scored.trial.removeprefix("t").partition(".")[0])
        assert told[number] == pytest.approx(scored.accuracy.mean)
    for trial in trials:
        assert 0.02 <= trial.params["steps.1.beta"] <= 0.9


@pytest.mark.slow
def test_what_is_proposed_depends_on_the_trials_before_alone(search: Search) -> None:
    import optuna

    _, plan, _ = search
    trials = _open(plan).trials
    again = optuna.create_study(direction="maximize")
    for trial in trials[:2]:
        again.add_trial(trial)
    again.sampler = optuna.samplers.TPESampler(seed=plan.config.training.seed + 2)
    assert again.ask(trials[2].distributions).params == trials[2].params


@pytest.mark.slow
def test_a_search_that_is_made_already_runs_nothing(search: Search, sdpo: Sdpo) -> None:
    bench, _, done = search
    options = [word for each in OVER for word in ("--over", each)]
    said = sdpo("sweep", bench.write(), *options, "--trials", "3")
    assert said.code == 0
    assert "every run is complete: nothing to run" in said.told
    assert f"Best by selection: {done.swept.found.arms[0].arm}" in said.told
    assert sum(line.shared for line in done.swept.found.arms) == 2
    other = sdpo("sweep", bench.write(), "--over", "training.beta=0.1..0.3", "--trials", "3")
    assert (other.code, "was begun over steps.1.beta=log:0.02..0.9 and" in other.told) == (2, True)
    changed = sdpo("sweep", bench.write(), *options, "--trials", "3", "--set", "training.epochs=2")
    assert (changed.code, "was begun with another recipe" in changed.told) == (2, True)
    grid = sdpo("sweep", bench.write(), "--over", "training.beta=0.1,0.3")
    assert (grid.code, "study tiny-sweep is a search" in grid.told) == (2, True)


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_ended_after_a_step_and_not_after_the_last(
    finished: Outcome, tmp_path: Path, tiny_recipe: Values
) -> None:
    optuna = pytest.importorskip("optuna")
    config = make_config(Bench(tmp_path, tiny_recipe).values())
    over = ("training.beta=0.01..0.3",)
    plan = plan_search(config, over=over, trials=4, prune=True)
    space = {"training.beta": optuna.distributions.FloatDistribution(0.01, 0.3)}

    def called(before: float) -> Callable[[], object]:
        """The call of a trial's first step, where three trials had come so far at it."""
        db = optuna.create_study(
            direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=3)
        )
        for value in (0.1, 0.2, 0.3):
            made = optuna.trial.create_trial(
                params={"training.beta": value},
                distributions=space,
                value=before,
                intermediate_values={1: before},
            )
            db.add_trial(made)
        db.sampler = optuna.samplers.RandomSampler(seed=0)
        asked = db.ask(space)
        point = _point(asked.params, plan)
        (trial,) = trials_at(config, [point], folder=plan.study.path, prefix="t3.")
        run = plan.study.run(trial.name)
        if not run.path.exists():
            shutil.copytree(finished.folder, run.path)
        call = _watched(Host(), plan, 3, db).call
        return lambda: (call("step 1", int), call("step 2", int), db.trials[3].intermediate_values)

    with pytest.raises(Pruned, match="ended after step 1"):
        called(before=1.1)()
    _, _, values = called(before=-0.1)()  # type: ignore[misc]
    assert list(values) == [1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_pruned_search_ends_trials_by_the_median_and_goes_on_after_it(
    tmp_path: Path, searched_recipe: Values, sdpo: Sdpo
) -> None:
    """The trials are trained; which of them had to end is worked out again from what Optuna's
    journal has of every step."""
    optuna = pytest.importorskip("optuna")
    bench = Bench(tmp_path, searched_recipe)
    over = ("training.learning_rate=0.02..0.6",)
    plan = plan_search(make_config(bench.values()), over=over, trials=8, prune=True)
    with forked_stages():
        done = run_search(plan)
    trials = _open(plan).trials
    first = {t.number: t.intermediate_values[1] for t in trials if 1 in t.intermediate_values}
    states = optuna.trial.TrialState
    ended = {t.number for t in trials if t.state == states.PRUNED}
    complete = {
        number: [t.intermediate_values[1] for t in trials[:number] if t.state == states.COMPLETE]
        for number in first
    }
    expected = {
        number
        for number, value in first.items()
        if len(complete[number]) >= 3 and value < np.median(complete[number])
    }
    assert ended == expected
    assert ended
    assert {1} == {step for t in trials for step in t.intermediate_values}
    assert len(done.swept.pruned) == len(ended)
    assert len(done.swept.selection) == 8 - len(ended)
    for number in ended:
        (run,) = plan.study.path.glob(f"t{number}.*")
        assert RunFolder(run).complete_steps() == [1]
    assert all("was ended after step 1, at " in how for how in done.swept.pruned.values())
    said = sdpo("sweep", bench.write(), "--over", *over, "--trials", "8", "--prune", "--json")
    assert (said.code, json.loads(said.out)) == (0, done.swept.as_json())


@pytest.mark.slow
def test_values_are_those_of_the_ranges(tiny_recipe: Values, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from sdpo.study.search import _distributions

    config = make_config(Bench(tmp_path, tiny_recipe).values())
    overs = read_overs(
        ["training.beta=log:0.01..0.3", "training.epochs=1..4", "training.objective=dpo,ipo"],
        config=config,
        with_ranges=True,
    )
    found = _distributions(overs)
    assert found["training.beta"] == optuna.distributions.FloatDistribution(0.01, 0.3, log=True)
    assert found["training.epochs"] == optuna.distributions.IntDistribution(1, 4)
    choices = optuna.distributions.CategoricalDistribution(['"dpo"', '"ipo"'])
    assert found["training.objective"] == choices


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--over", "training.beta=0.3..0.01", "--trials", "5"], "the wrong way round"),
        (["--over", "training.beta=-1..0.3", "--trials", "5"], "Input should be greater than 0"),
        (["--over", "training.beta=0.1", "--trials", "5"], "there is one value"),
        (["--over", "training.beta=0.1..0.3", "--trials", "1"], "--trials 1: give 2 to 1000"),
        (["--over", "training.beta=0.1,0.3", "--prune"], "say how many, with --trials N"),
        (["--over", "training.exo_epsilon=0.1..0.3", "--trials", "5"], "are the same"),
        (["--over", "steps.2.beta=0.1..0.3", "--trials", "5"], "of step 2 it is step-2.beta"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_words(
    bench: Bench, sdpo: Sdpo, options: list[str], message: str
) -> None:
    said = sdpo("sweep", bench.write(), *options)
    assert (said.code, message in said.told) == (2, True), said.told
    assert not bench.runs.exists()


def test_a_search_without_optuna_says_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        planned(make_config(bench.values()), trials=3)
