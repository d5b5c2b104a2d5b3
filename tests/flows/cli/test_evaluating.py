"""``sdpo evaluate``, and recipes with suites: what is refused before anything is computed."""

import pytest
from bench import Bench
from command_line import Sdpo

from sdpo.system.permissions import JUDGE_ENDPOINTS, TASK_FOLDERS


def test_a_recipe_with_task_files_that_nobody_permitted_is_refused_before_anything_is_done(
    bench: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TASK_FOLDERS, raising=False)
    monkeypatch.setattr("sdpo.inputs.resolve._check_packages", lambda config: None)
    tasks = bench.folder / "tasks"
    tasks.mkdir()
    settings = {"evaluation": {"suites": ["mine"], "task_files": str(tasks)}}
    refused = sdpo("run", bench.write(settings))
    assert refused.code == 2
    assert f"{TASK_FOLDERS}={tasks}" in refused.told
    assert not bench.runs.exists()
    elsewhere = {"evaluation": {"suites": ["mine"], "task_files": str(tasks) + "x"}}
    refused = sdpo("run", bench.write(elsewhere))
    assert "there is no folder at" in refused.told
    assert "did you mean tasks?" in refused.told


def test_a_recipe_with_suites_says_what_to_install_where_the_harness_is_not(
    bench: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = sdpo("run", bench.write({"evaluation": {"suites": ["h4"]}}))
    assert refused.code == 2
    assert "pip install lm-eval (this project's extra `eval`)" in refused.told
    assert "go without: --set evaluation.suites=[]" in refused.told


def test_a_finished_run_is_judged_by_something_and_of_models_that_it_has(
    finished_copy: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--runs-dir", finished_copy.runs)
    assert "by which suites?" in sdpo("evaluate", "tiny", *where).told
    assert "by which judge?" in sdpo("evaluate", "tiny", "--win-rate", *where).told
    missing = sdpo("evaluate", "tiny", "--suite", "h4", "--models", "M_0,M_7", *where)
    assert missing.code == 2
    assert "no complete model M_7: there are M_0, M_1, M_2" in missing.told
    other = sdpo("evaluate", "tiny", "--suite", "h4", "--set", "training.beta=1", *where)
    assert other.code == 2
    assert "only how it is judged" in other.told


def test_a_recipe_with_a_judge_whose_address_nobody_permitted_is_refused_before_anything_is_done(
    bench: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(JUDGE_ENDPOINTS, raising=False)
    url = "https://judge.example/v1"
    judge = {"endpoint": url, "model": "m", "max_tokens_total": 1000}
    for command in ("check", "run"):
        recipe = bench.write({"evaluation": {"win_rate": {"judge": judge}}})
        refused = sdpo(command, recipe)
        assert refused.code == 2
        assert f"{JUDGE_ENDPOINTS}={url}" in refused.told
        assert not bench.runs.exists()
    nameless = bench.write({"evaluation": {"win_rate": {"judge": {"endpoint": url}}}})
    assert "needs the name of the model" in sdpo("check", nameless).told
    code = bench.write({"evaluation": {"win_rate": {"judge": {"rule": "os:system"}}}})
    assert "`os:system` is not known" in sdpo("check", code).told
