"""A comparison of recipes: its runs, what they share, what is said of them."""

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, Values
from command_line import Sdpo, caller
from forked_stages import forked_stages
from histories import contents
from scored import write_scores
from studies import small

from sdpo.config.load import make_config
from sdpo.errors import DiskFullError
from sdpo.report.load import load_run
from sdpo.report.numbers import measure_run
from sdpo.store.run_folder import RunFolder
from sdpo.store.win_rates import read_verdicts
from sdpo.study.compare import Compared, Plan, plan_comparison, run_comparison
from sdpo.study.comparison import Comparison

ARMS = "sdpo,dpo,target_base"


class Study:
    """A comparison that was made: where, of what plan, and what came of it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.plan: Plan = plan_comparison(make_config(bench.values()), names=ARMS)
        with forked_stages():
            self.compared: Compared = run_comparison(self.plan)

    @property
    def folder(self) -> Path:
        return self.plan.study.path


@pytest.fixture(scope="module")
def small_recipe(tiny_recipe: Values) -> Values:
    """The tiny recipe with three optimizer steps a step, and a reserve of some use."""
    return small(tiny_recipe, updates=3) | {
        "evaluation": {
            "win_rate": {"judge": {"rule": "length"}, "prompts": 24, "max_new_tokens": 4}
        },
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_recipe: Values) -> Study:
    """Three arms of it, of which two share a step; tests only read them."""
    return Study(Bench(tmp_path_factory.mktemp("study"), small_recipe))


@pytest.fixture
def copied(study: Study, tmp_path: Path) -> Bench:
    """A copy of the comparison with its cache, to be changed."""
    return study.bench.copy_to(tmp_path)


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    """``sdpo("compare", recipe, ...)``: its exit code and what it printed."""
    return caller(capsys)


def planned(bench: Bench, **options: Any) -> Plan:
    return plan_comparison(make_config(bench.values()), **({"names": ARMS} | options))


def timeless(found: Comparison) -> Any:
    """What a comparison says, but for the time that it took."""
    said = found.as_json()
    for line in said["arms"]:  # type: ignore[union-attr]
        del line["seconds"]  # type: ignore[index,union-attr]
    return said


def test_no_row_is_scored_twice_and_each_is_counted_with_the_arm_that_needed_it(
    study: Study,
) -> None:
    rows = 0
    for key in (study.bench.folder / "cache" / "logps").iterdir():
        parts = [pq.read_table(part) for part in key.glob("*.parquet")]
        digests = [digest for part in parts for digest in part["row_digest"].to_pylist()]
        assert len(set(digests)) == len(digests)
        rows += len(digests)
    arms = {line.arm: line for line in study.compared.found.arms}
    assert sum(line.rows_scored for line in arms.values()) == rows
    # D_2 under S, which `sdpo` was not measured on, and M_1 on what every model is measured on.
    plan = pq.read_table(study.folder / "dpo" / "plan.parquet").to_pydict()
    reserved = sum(step == 0 for step in plan["step"])
    sampled = sum(plan["sampled"])
    assert arms["dpo"].rows_scored <= sum(arms["sdpo"].pairs) + sampled
    assert arms["sdpo"].rows_scored > reserved


def test_a_step_that_two_arms_make_alike_is_trained_once(study: Study) -> None:
    arms = {line.arm: line for line in study.compared.found.arms}
    assert (arms["sdpo"].trained, arms["sdpo"].shared) == (2, 0)
    assert (arms["target_base"].trained, arms["target_base"].shared) == (1, 1)
    assert (arms["dpo"].trained, arms["dpo"].pairs) == (1, [sum(arms["sdpo"].pairs)])
    assert [arms[name].scorings for name in ("sdpo", "dpo", "target_base")] == [2, 1, 0]
    record = RunFolder(study.folder / "target_base").step_record("step-1")
    assert record.shared_from is not None
    assert record.shared_from.run in ("sdpo", "dpo")


def test_the_numbers_of_an_arm_are_those_of_its_runs_own_report(study: Study) -> None:
    for line in study.compared.found.arms:
        data = load_run(study.folder / line.arm)
        entry = measure_run(data).reserve[len(data.steps)]
        assert line.accuracy.mean == pytest.approx(entry.ranking_accuracy)
        assert line.rose.mean == pytest.approx(entry.accuracy_vs_S)
        assert line.gamma.mean == pytest.approx(entry.mean)


def test_a_difference_is_that_of_the_two_runs_probes(study: Study) -> None:
    def gamma(arm: str, model: int) -> dict[str, float]:
        table = pq.read_table(study.folder / arm / "probes" / f"M_{model}.parquet").to_pylist()
        return {
            row["pair_id"]: row["chosen_logps"] - row["rejected_logps"]
            for row in table
            if row["probe"].startswith("reserve:")
        }

    first, dpo = gamma("sdpo", 2), gamma("dpo", 1)
    assert first.keys() == dpo.keys()
    changes = [dpo[pair] - first[pair] for pair in first]
    found = {(c.arm, c.measure): c.found for c in study.compared.found.contrasts}
    assert found["dpo", "gamma"].mean == pytest.approx(np.mean(changes))
    right = np.mean([(dpo[pair] > 0) - float(first[pair] > 0) for pair in first])
    assert found["dpo", "ranking_accuracy"].mean == pytest.approx(right)


def test_a_win_rate_is_paired_prompt_by_prompt_and_every_model_answers_once(study: Study) -> None:
    def won(arm: str, model: int) -> dict[str, float]:
        verdicts = read_verdicts(RunFolder(study.folder / arm))
        (over_s,) = [each for each in verdicts if (each.model, each.other) == (model, 0)]
        rows = pq.read_table(over_s.table).to_pylist()
        return {row["prompt_key"]: row["forward"] for row in rows}

    first, dpo = won("sdpo", 2), won("dpo", 1)
    assert first.keys() == dpo.keys()
    (contrast,) = [
        each
        for each in study.compared.found.contrasts
        if (each.arm, each.title) == ("dpo", "win rate over S, by the rule `length`")
    ]
    assert contrast.found.mean == pytest.approx(np.mean([dpo[key] - first[key] for key in first]))
    lines = {line.arm: line for line in study.compared.found.arms}
    assert lines["dpo"].win_rates[contrast.title].mean == pytest.approx(np.mean(list(dpo.values())))
    # S, and of three arms two, one and two models, of which a first one is shared.
    assert len(list((study.bench.folder / "cache" / "completions").iterdir())) == 5


def test_suites_are_paired_document_by_document(copied: Bench) -> None:
    folder = copied.runs / "tiny-compare"
    right = {"sdpo": (2, 0.5), "dpo": (1, 0.8), "target_base": (2, 0.5)}
    for arm, (model, share) in right.items():
        values = [float(number % 10 < 10 * share) for number in range(200)]
        write_scores(RunFolder(folder / arm), model, "quiz", values)
        (folder / "results" / f"{arm}.json").unlink()
    found = run_comparison(planned(copied)).found
    of_quiz = {c.arm: c for c in found.contrasts if c.title == "quiz (acc)"}
    dpo = of_quiz["dpo"]
    assert (dpo.items, dpo.found.pairs, dpo.is_shown) == ("documents", 200, True)
    assert dpo.found.mean == pytest.approx(0.3)
    # Documents differ by 1 in 30% of all: normal theory.
    half = 1.96 * (0.3 * 0.7 / 200) ** 0.5
    assert dpo.found.low == pytest.approx(0.3 - half, abs=0.01)
    assert of_quiz["target_base"].found.p is None
    page = html.unescape((folder / "comparison.html").read_text(encoding="utf-8"))
    assert "dpo has more on quiz (acc) than sdpo: +0.3000 " in page
    again = run_comparison(planned(copied))
    assert (again.ran, timeless(again.found)) == ((), timeless(found))


def test_a_model_that_was_not_judged_so_is_judged_and_nothing_is_trained_again(
    study: Study, copied: Bench, sdpo: Sdpo
) -> None:
    with forked_stages():
        said = sdpo(
            *("compare", copied.write(), "--arms", "sdpo,dpo", "--json"),
            *("--set", "evaluation.win_rate.judge.rule=on_topic"),
        )
    assert said.code == 0
    lines = {line["arm"]: line for line in json.loads(said.out)["arms"]}
    both = {f"win rate over S, by the rule `{rule}`" for rule in ("length", "on_topic")}
    for arm in study.compared.found.arms[:2]:
        assert lines[arm.arm]["win_rates"].keys() == both
        assert lines[arm.arm]["seconds"] == arm.seconds


def test_a_comparison_that_is_made_already_runs_nothing_and_says_the_same(
    study: Study, sdpo: Sdpo
) -> None:
    before = contents(study.folder / "sdpo")
    said = sdpo("compare", study.bench.write(), "--arms", ARMS)
    assert said.code == 0
    assert "every run is complete: nothing to run" in said.told
    assert "Differences from sdpo" in said.told
    assert contents(study.folder / "sdpo") == before
    numbers = sdpo("compare", study.bench.write(), "--arms", ARMS, "--json")
    assert json.loads(numbers.out) == study.compared.found.as_json()
    assert json.loads((study.folder / "comparison.json").read_text()) == json.loads(numbers.out)


def test_a_comparison_that_was_cut_short_ends_in_the_same_table(
    study: Study, copied: Bench
) -> None:
    folder = copied.runs / "tiny-compare"
    for name in ("target_base.json", "dpo.parquet"):
        (folder / "results" / name).unlink()
    step = RunFolder(folder / "target_base").step(2)
    (step / "record.json").unlink()
    for name in ("comparison.html", "comparison.json"):
        (folder / name).unlink()
    with forked_stages():
        again = run_comparison(planned(copied))
    assert again.ran == ("dpo", "target_base")
    assert timeless(again.found) == timeless(study.compared.found)
    assert (folder / "comparison.html").is_file()


def test_an_arm_that_fails_is_named_and_does_not_lose_the_others(copied: Bench, sdpo: Sdpo) -> None:
    own = ("--arm", "lost:partition.groups=[[questions],[nobody]]")
    said = sdpo("compare", copied.write(), "--arms", "sdpo,dpo", *own)
    assert said.code == 1
    assert "lost failed: " in said.told
    assert "nobody" in said.told
    assert "study tiny-compare goes on" in said.told
    page = (copied.runs / "tiny-compare" / "comparison.html").read_text(encoding="utf-8")
    assert "1 run failed" in page
    found = json.loads((copied.runs / "tiny-compare" / "comparison.json").read_text())
    assert [line["arm"] for line in found["arms"]] == ["sdpo", "dpo"]
    assert list(found["failed"]) == ["lost"]


def test_numbers_stay_when_runs_go_and_are_those_of_their_recipe_alone(
    study: Study, copied: Bench, sdpo: Sdpo
) -> None:
    folder = copied.runs / "tiny-compare"
    (folder / "dpo" / "notes.txt").write_text("mine", encoding="utf-8")
    gone = run_comparison(planned(copied), keep="none")
    assert timeless(gone.found) == timeless(study.compared.found)
    assert not (folder / "sdpo").exists()
    assert sorted(path.name for path in (folder / "dpo").iterdir()) == [
        ".lock", ".sdpo.json", "notes.txt",
    ]  # fmt: skip
    again = run_comparison(planned(copied), keep="none")
    assert again.ran == ()
    assert timeless(again.found) == timeless(study.compared.found)
    rule = "evaluation.win_rate.judge.rule=on_topic"
    judged = sdpo("compare", copied.write(), "--arms", ARMS, "--set", rule)
    assert (judged.code, "judged in another way (evaluation)" in judged.told) == (2, True)
    other = sdpo("compare", copied.write(), "--arms", ARMS, "--set", "training.beta=0.7")
    assert (other.code, "settings.training.beta: nothing -> 0.7" in other.told) == (2, True)
    assert "give this study another name (--name)" in other.told


def test_runs_that_are_there_are_compared_by_name_with_pairs_that_both_set_aside(
    study: Study, copied: Bench, sdpo: Sdpo
) -> None:
    shutil.copytree(study.folder / "dpo", copied.runs / "old")
    said = sdpo("compare", copied.write(), "--arms", "sdpo,old", "--json")
    assert said.code == 0
    found = json.loads(said.out)
    before = {(c.arm, c.measure): c.found for c in study.compared.found.contrasts}
    after = {(c["arm"], c["measure"]): c["found"] for c in found["contrasts"]}
    assert after["old", "gamma"]["mean"] == before["dpo", "gamma"].mean
    assert after["old", "gamma"]["pairs"] == 24


def test_a_run_that_is_not_complete_is_no_arm(copied: Bench, study: Study, sdpo: Sdpo) -> None:
    shutil.copytree(study.folder / "sdpo", copied.runs / "old")
    for name in ("record.json", "record.json.sha256"):
        (copied.runs / "old" / "step-2" / name).unlink()
    said = sdpo("compare", copied.write(), "--arms", "sdpo,dpo,old")
    assert said.code == 1
    assert "run old is not complete (1 of 2 steps): sdpo resume old" in said.told


def test_what_a_study_needs_is_not_cleaned_away(copied: Bench, sdpo: Sdpo) -> None:
    cache = contents(copied.folder / "cache")
    assert sdpo("gc", "--yes", "--runs-dir", copied.runs).code == 0
    rows = {name for name in cache if name.startswith("logps") and name.endswith(".parquet")}
    assert rows
    assert rows <= contents(copied.folder / "cache").keys()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(copied: Bench, sdpo: Sdpo) -> None:
    before = contents(copied.runs)
    said = sdpo("compare", copied.write(), "--arms", "sdpo,easy_first,stratified", "--dry-run")
    assert said.code == 0
    assert "sdpo – – – is done: its results are read" in said.told
    assert "in all: 2 runs, roughly" in said.told
    assert "tokens trained on, at most" in said.told
    assert contents(copied.runs) == before


def test_a_study_that_the_disk_has_no_room_for_is_refused_beforehand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo.study.before.free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFullError, match=r"3 runs need .* let runs go") as refused:
        run_comparison(planned(bench))
    assert "--runs-dir" in str(refused.value)
    assert not bench.runs.exists()


def test_the_page_says_what_it_shows_and_escapes_what_is_anybodys(
    copied: Bench, sdpo: Sdpo
) -> None:
    own = ("--arm", "mine:partition.groups=[[questions],['<b>nobody</b>']]")
    sdpo("compare", copied.write(), "--arms", ARMS, *own)
    page = (copied.runs / "tiny-compare" / "comparison.html").read_text(encoding="utf-8")
    assert "<b>nobody" not in page
    assert "&lt;b&gt;nobody" in page
    for said in (
        "Table 2 of arXiv 2403.19270",
        "Holm",
        "Not measured: suites (evaluation.suites)",
        "Win rate over S",
        "Rows scored",
    ):
        assert said in page
    assert page.count("<svg") == 4
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "sdpo,sdpo"], "arm `sdpo` is given twice: name each once"),
        (["--arms", "sdpo"], "a comparison needs two arms, and only `sdpo` is given"),
        (["--arms", ""], "a comparison needs two arms, and no arm is given"),
        (["--arms", "sdpo,dop"], "`dop` is neither an arm nor a run in"),
        (["--arms", "sdpo,targetbase"], "did you mean `target_base`?"),
        (["--arms", "sdpo,x:training.beta=1"], "give it as --arm x:training.beta=1"),
        (["--arms", "sdpo", "--arm", "same:training.beta=0.1"], "`sdpo` and `same` are the same"),
        (
            ["--arms", "sdpo", "--arm", "same:training.exo_epsilon=0.2"],
            "`sdpo` and `same` are the same",  # DPO does not read it
        ),
        (["--arm", "x:training.betta=1"], "arm `x`: training.betta: unknown key; did you mean"),
        (["--arm", "x:training.beta=-1"], "arm `x`: training.beta: Input should be greater than 0"),
        (["--arm", "x"], "--arm x: write it as name:key=value"),
        (["--arm", "a/b:training.beta=1"], "write it as name:key=value"),
        (["--arm", "dpo:training.beta=1"], "`dpo` is an arm already"),
        (["--arm", "step-2:training.beta=1"], "`step-2` is the name of a run's step"),
        (["--arm", "x:steps.2.beta=1"], "of step 2 it is step-2.beta"),
        (["--arm", "x:step-3.beta=1"], "the recipe has 2 steps: the last one's is step-2.beta"),
        (["--seeds", "0"], "--seeds 0: give 1 to 100"),
        (["--name", "a/b"], "`a/b` cannot be the name of a run"),
        (["--set", "data.sources.1.path=nowhere.jsonl"], "sdpo: no data at"),
        (["--arm", "x:model.name_or_path=nowhere"], "x: model.name_or_path: nowhere is not a"),
        (["--keep", "some"], "'some' is not one of 'models', 'none'"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_words_and_leaves_nothing(
    bench: Bench, sdpo: Sdpo, options: list[str], message: str
) -> None:
    said = sdpo("compare", bench.write(), *options)
    assert (said.code, message in said.told) == (2, True), said.told
    assert not bench.runs.exists()


def test_arms_of_a_recipe_with_one_step_are_the_same(bench: Bench, sdpo: Sdpo) -> None:
    one = ("--set", "partition.strategy=single")
    said = sdpo("compare", bench.write(), "--arms", "sdpo,reference_base", *one)
    assert said.code == 2
    assert "are the same, since the recipe has one step" in said.told


def test_a_folder_that_is_no_study_is_left_alone(copied: Bench, sdpo: Sdpo) -> None:
    shutil.copytree(copied.runs / "tiny-compare" / "dpo", copied.runs / "old")
    refused = sdpo("compare", copied.write(), "--name", "old")
    assert refused.code == 2
    assert "is a run of this project and not a study" in refused.told
    run = sdpo("run", copied.write(), "--name", "tiny-compare")
    assert run.code == 2
    assert "is a study of this project and not a run" in run.told


def test_the_runs_of_a_study_are_runs_as_all_others(study: Study, sdpo: Sdpo) -> None:
    shown = sdpo("status", "tiny-compare/target_base", "--runs-dir", study.bench.runs)
    assert shown.code == 0
    assert "arm of a study, beside sdpo" in shown.told
    whole = sdpo("verify", "tiny-compare/target_base", "--runs-dir", study.bench.runs)
    assert (whole.code, "is whole" in whole.told) == (0, True), whole.told
