"""A campaign says what it can show, keeps its parts in small files, and goes on from them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bench import DemoFiles
from forked_stages import forked_stages

from benchmarks.science import __main__ as program
from benchmarks.science.campaign import Prepared, prepare, run_parts
from benchmarks.science.design import Campaign, Design, part_seconds, smallest_effects
from benchmarks.science.parts import Part, PartFiles, Suite, Win, reserve_values, rows_of
from benchmarks.science.recipe import campaign_config, campaign_trials
from benchmarks.science.sources import FILES, make_sources
from benchmarks.science.tables import comparison_of, page, read_parts, trial_names
from sdpo.config import settings_without_effect
from sdpo.errors import IntegrityError, UserError
from sdpo.events import NodeEvent, ProgressEvent
from sdpo.hooks import Host
from sdpo.study.folder import StudyFolder
from sdpo.study.results import kept

ROOT = Path(__file__).parents[2]
SMALL: dict[str, object] = {
    "pairs": 8,
    "reserve": 8,
    "max_length": 160,
    "seeds": 1,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "several": ("sdpo", "dpo"),
    "single": ("target_base",),
}


@dataclass(frozen=True)
class Place:
    """Where a campaign of a tiny model is: its model, its data as published, its folders."""

    model: Path
    data: Path
    folder: Path

    def prepared(self, given: dict[str, object] = SMALL, *, work: str = "work") -> Prepared:
        return prepare(
            given,
            model=self.model,
            data=[self.data],
            results=self.folder / "results",
            work=self.folder / work,
        )


def published(rows: list[dict[str, str]], folder: Path) -> Path:
    """The demo's pairs as the three files have theirs, with rows that are to be left out."""
    one, two, three = (rows[k::3] for k in range(3))
    scored = [{**row, "metadata": {"score_chosen": 5.0, "score_rejected": 3.0}} for row in one]
    tie = {**rows[0], "prompt": "A tie?", "metadata": {"score_chosen": 4.0, "score_rejected": 4.0}}
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in [tie, *scored, scored[0]])
    (folder / FILES["ultrafeedback"]).write_text(lines, encoding="utf-8")
    judged: list[dict[str, Any]] = [
        {
            "instruction": row["prompt"],
            "input": "",
            "response1": row["rejected"],
            "response2": row["chosen"],
            "annotator1": 2,
            "annotator2": 1,
            "annotator3": 2,
        }
        for row in two
    ]
    odd = [
        judged[0] | {"instruction": "No text", "response1": True},
        judged[0] | {"instruction": "A tie", "annotator1": 0, "annotator2": 0},
        judged[0] | {"instruction": "Three minds", "annotator1": 0},
    ]
    (folder / FILES["pandalm"]).write_text(json.dumps(odd + judged), encoding="utf-8")
    tones = [
        {"instruction": row["prompt"], "input": "in short", **row, "output": row["chosen"]}
        for row in three
    ]
    (folder / FILES["polite_rude"]).write_text(json.dumps(tones), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(demo_files: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("science")
    lines = demo_files.questions.read_text(encoding="utf-8").splitlines()[:120]
    rows = [json.loads(line) for line in lines]
    return Place(demo_files.model, published(rows, folder / "data" / "preferences"), folder)


@pytest.fixture(scope="module")
def campaign(place: Place) -> Prepared:
    """A campaign of which two machines ran a part each, and whose work folders are then gone."""
    prepared = place.prepared(work="one")
    written = Campaign.model_validate_json((place.folder / "results/campaign.json").read_bytes())
    assert written == prepared.campaign, "what can be shown is written before anything runs"
    assert written.smallest
    assert not (place.folder / "one" / "runs").exists()
    with pytest.raises(UserError, match="no part is named dpoo: they are sdpo, dpo, target_base"):
        run_parts(prepared, most=0, host=Host(), say=str, only=["dpoo"])
    for work, name in (("one", "sdpo"), ("two", "dpo")):
        other = place.prepared(work=work)
        with forked_stages():
            assert run_parts(other, most=0, host=Host(), say=str, only=[name]) == [name]
        shutil.rmtree(place.folder / work)
    return place.prepared(work="elsewhere")


def test_the_smallest_effect_is_what_four_tries_in_five_show():
    design = Design(pairs=48, reserve=64)
    (found,) = (e for e in smallest_effects(design) if (e.measure, e.supposed) == ("gamma", 2.0))
    draws = np.random.default_rng(1).normal(found.effect, 2.0, size=(4000, design.reserved))
    z = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / design.reserved**0.5)
    # The 1 - 0.05 / 24 quantile of the normal distribution: twelve tests, two sides.
    assert np.mean(z > 2.8653) == pytest.approx(0.8, abs=0.03)


def test_a_share_of_pairs_that_change_sides_bounds_the_error_of_accuracy():
    (found,) = (e for e in smallest_effects(Design(reserve=64)) if e.supposed == 0.10)
    assert found.effect == pytest.approx((0.10 / 192) ** 0.5 * (2.8653 + 0.8416), rel=1e-3)


def test_a_part_of_adapters_is_cheaper_and_one_of_more_pairs_is_longer():
    costs = {"characters": 500.0, "parameters": 134_515_008, "flops_per_s": 4e10}
    seconds = [part_seconds(Design(**each), **costs) for each in ({}, {"lora_r": 16})]
    assert seconds[1] < seconds[0] < part_seconds(Design(pairs=96), **costs)


@pytest.mark.parametrize("more", [{}, {"lora_r": 8}, {"suites": ("hellaswag",), "win_prompts": 5}])
def test_a_recipe_has_no_setting_without_effect(place, tmp_path, more):
    sources = make_sources([place.data], tmp_path, characters=700)
    design = Design(**more)
    config = campaign_config(design, model=place.model, sources=sources, work=tmp_path)
    assert settings_without_effect(config) == []
    assert config.evaluation.win_rate.is_on == bool(design.win_prompts)
    trials = campaign_trials(design, config, StudyFolder(tmp_path / "runs" / "campaign"))
    assert [t.name for t in trials[:2]] == ["sdpo", "dpo"]
    assert {(t.arm, t.seed) for t in trials if t.arm in design.several} == {
        (arm, seed) for arm in design.several for seed in (42, 43, 44)
    }
    thirds = {t.arm: len(t.config.partition.fractions) for t in trials if t.config}
    assert (thirds["stratified"], thirds["random"]) == (3, 3)


def test_ties_texts_that_are_none_and_prompts_met_again_are_left_out(place, tmp_path):
    sources = {s.name: s for s in make_sources([place.data.parent], tmp_path, characters=700)}
    rows = {
        name: [json.loads(line) for line in source.path.read_text().splitlines()]
        for name, source in sources.items()
    }
    assert [row["prompt"] for row in rows["ultrafeedback"][:2]] != ["A tie?"]
    for name, several in rows.items():
        prompts = [row["prompt"] for row in several]
        assert len(set(prompts)) == len(prompts) == sources[name].pairs
    odd = {"A tie?", "No text", "A tie", "Three minds"}
    assert not odd & {row["prompt"] for several in rows.values() for row in several}
    demo = json.loads((place.data / FILES["pandalm"]).read_text())
    first = rows["pandalm"][0]
    origin = demo[first["row"]]
    assert (first["chosen"], first["rejected"]) == (origin["response2"], origin["response1"])
    assert rows["polite_rude"][0]["prompt"].endswith("\n\nin short")


def test_a_file_that_is_another_one_is_named(place, tmp_path):
    folder = shutil.copytree(place.data, tmp_path / "data")
    (folder / FILES["pandalm"]).write_text('[{"prompt": "a"}]', encoding="utf-8")
    with pytest.raises(UserError, match=r"pandalm_testset-v1\.json is not the file of pandalm"):
        make_sources([folder], tmp_path, characters=700)
    with pytest.raises(UserError, match="--data"):
        make_sources([tmp_path], tmp_path, characters=700)


@pytest.mark.slow  # with the others a minute
@pytest.mark.timeout(600)
def test_parts_that_are_kept_are_not_run_again_though_the_work_is_gone(campaign, place):
    assert campaign.missing == ["target_base"]
    files = (campaign.parts.numbers("sdpo"), campaign.parts.pairs("sdpo"))
    before = [path.read_bytes() for path in files]
    with forked_stages():
        assert run_parts(campaign, most=0, host=Host(), say=str) == ["target_base"]
    assert [path.read_bytes() for path in files] == before
    assert not campaign.missing
    # What is put back is what a comparison reads.
    found = kept(campaign.study, "sdpo")
    assert found is not None
    part, table = campaign.parts.read("sdpo")
    assert found[0].model == part.result.model
    np.testing.assert_array_equal(found[1].gamma, reserve_values(table).gamma)
    # Step 1 of both arms is the same, whether it was linked or made again elsewhere.
    other, _ = campaign.parts.read("target_base")
    assert other.result.steps[0].model == part.result.steps[0].model


@pytest.mark.slow  # with the others a minute
@pytest.mark.timeout(600)
def test_no_path_of_the_machine_is_in_a_part(campaign, place):
    for name in ("sdpo", "dpo"):
        text = campaign.parts.numbers(name).read_text(encoding="utf-8")
        assert str(place.folder) not in text
        assert str(place.model) not in text


@pytest.mark.slow  # with the others a minute
@pytest.mark.timeout(600)
def test_the_tables_are_of_the_parts_values(campaign, place):
    kept_parts = read_parts(campaign.campaign, place.folder / "results")
    assert trial_names(campaign.campaign) == [t.name for t in campaign.trials]
    text = page(campaign.campaign, place.folder / "results")
    part, table = kept_parts["sdpo"]
    second = rows_of(table, "D_2")
    change = second["gamma_1"].to_numpy() - second["gamma_0"].to_numpy()
    assert len(change) == 8
    line = next(line for line in text.splitlines() if line.startswith("| sdpo | D_2 (8) | M_1"))
    assert f"{change.mean():.2f}".replace("-", "−") in line
    assert f"{100 * np.mean(change > 0):.1f}%" in line
    accuracy = 100 * np.mean(rows_of(table, "reserve:")["gamma_3"].to_numpy() > 0)
    assert f"| sdpo | 1 | {accuracy:.1f}%" in text
    assert part.losses[1][0] == pytest.approx(np.log(2), abs=1e-4)


@pytest.mark.slow  # with the others a minute
@pytest.mark.timeout(600)
def test_another_design_or_other_data_are_refused_by_name(campaign, place, tmp_path):
    with pytest.raises(UserError, match=r"beta: 0\.1 -> 0\.2"):
        place.prepared(SMALL | {"beta": 0.2})
    data = shutil.copytree(place.data, tmp_path / "data")
    (data / FILES["polite_rude"]).write_text(
        (data / FILES["polite_rude"]).read_text().replace("in short", "in brief")
    )
    other = Place(place.model, data, place.folder)
    with pytest.raises(UserError, match="the pairs of polite_rude are not those"):
        other.prepared()


@pytest.fixture(scope="module")
def landed() -> tuple[Campaign, dict[str, tuple[Part, pa.Table]]]:
    """The campaign that is kept with the project, and its parts."""
    found = Campaign.model_validate_json((program.RESULTS / "campaign.json").read_bytes())
    return found, read_parts(found, program.RESULTS)


def test_every_file_that_is_kept_is_of_a_part_and_small(landed):
    found, parts = landed
    files = {path.name: path for path in program.RESULTS.iterdir()}
    names = {f"{name}.{kind}" for name in parts for kind in ("json", "parquet")}
    assert set(files) == {"campaign.json", *names}
    assert set(parts) <= set(trial_names(found))
    assert max(path.stat().st_size for path in files.values()) < 100_000
    assert not any('": "/' in (program.RESULTS / f"{name}.json").read_text() for name in parts)


def test_parts_that_are_kept_are_of_one_reserve_and_one_start(landed):
    found, parts = landed
    values = [reserve_values(table) for _, table in parts.values()]
    for each in values:
        assert len(each.pair_id) == found.design.reserved
        np.testing.assert_array_equal(each.pair_id, values[0].pair_id)
        # The same rows of the same model, scored by another process at another time.
        np.testing.assert_allclose(each.start, values[0].start, atol=1e-3)
    for part, table in parts.values():
        assert part.result.start == next(iter(parts.values()))[0].result.start
        for step in part.result.steps:
            assert rows_of(table, f"D_{step.step}").num_rows == step.pairs
            # From step 2 on these two arms have a target that is not their reference.
            if step.step == 1 or part.result.arm not in ("target_base", "reference_base"):
                assert part.losses[step.step][0] == pytest.approx(np.log(2), abs=1e-3)


def test_the_differences_of_parts_are_the_means_of_paired_differences(landed):
    _, parts = landed
    if not {"sdpo", "dpo"} <= set(parts):
        pytest.skip("the parts of two arms are not kept yet")
    found = comparison_of(parts, ["sdpo", "dpo"])
    assert found is not None
    one, other = (reserve_values(parts[name][1]) for name in ("sdpo", "dpo"))
    by_measure = {contrast.measure: contrast.found for contrast in found.contrasts}
    assert by_measure["gamma"].mean == pytest.approx(np.mean(other.gamma - one.gamma))
    right = np.mean(other.gamma > 0) - np.mean(one.gamma > 0)
    assert by_measure["ranking_accuracy"].mean == pytest.approx(right)
    t = np.mean(other.gamma - one.gamma) / (np.std(other.gamma - one.gamma, ddof=1) / 192**0.5)
    # The bootstrap's interval leaves out 0 where the t statistic is clearly large, and only there.
    assert abs(t) < 2.3 or by_measure["gamma"].low * by_measure["gamma"].high > 0
    assert abs(t) > 1.7 or by_measure["gamma"].low * by_measure["gamma"].high < 0


def test_the_page_has_the_tables_of_the_parts_that_are_kept_with_the_project(landed):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text.partition(f"{program.MARK}\n\n")[2] == page(landed[0], program.RESULTS), (
        "python -m benchmarks.science --page docs/results.md writes them"
    )


@pytest.mark.slow  # with the others a minute
@pytest.mark.timeout(600)
def test_a_damaged_part_is_named_with_the_remedy(campaign, place, tmp_path):
    results = shutil.copytree(place.folder / "results", tmp_path / "results")
    (results / "dpo.json").write_text("{}", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"part dpo in .* cannot be read"):
        read_parts(campaign.campaign, results)


def test_more_pairs_than_there_are_and_unknown_arms_end_without_a_traceback(
    place, tmp_path, capsys
):
    asked = ["--model", str(place.model), "--data", str(place.data), "--work", str(tmp_path)]
    asked += ["--results", str(tmp_path / "results"), "--plan"]
    assert program.main([*asked, "--pairs", "4000"]) == 2
    assert "4064 are wanted" in capsys.readouterr().err
    assert program.main([*asked, "--single", "stratifed"]) == 2
    assert "`stratifed` is no arm" in capsys.readouterr().err
    small = ["--pairs", "4", "--reserve", "4", "--several", "sdpo", "--single", ""]
    assert program.main([*asked, *small, "--only", "sdpo.seed-42"]) == 2
    assert "no part is named sdpo.seed-42: they are sdpo," in capsys.readouterr().err
    assert program.main(["--results", str(tmp_path / "none")]) == 2
    assert "no campaign has begun" in capsys.readouterr().err
    (tmp_path / "page.md").write_text("No mark.\n", encoding="utf-8")
    assert program.main(["--page", str(tmp_path / "page.md")]) == 2
    assert "has no line" in capsys.readouterr().err


def test_a_part_says_once_a_minute_where_it_is(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(program, "time", SimpleNamespace(monotonic=lambda: now))
    teller = program._Teller()
    teller(NodeEvent(node="step-2", status="run", reason="new"))
    for now in (30.0, 61.0, 62.0, 130.0):
        teller(ProgressEvent(phase="train", done=int(now), total=200, unit="steps"))
    said = capsys.readouterr().err.splitlines()
    assert said == ["  step-2, train: 61 of 200 steps", "  step-2, train: 130 of 200 steps"]


def test_what_suites_and_a_judge_said_stands_beside_the_rest_and_of_s_once(tmp_path):
    kept_here = ROOT / "benchmarks" / "results" / "science"
    campaign = Campaign.model_validate_json((kept_here / "campaign.json").read_bytes())
    text = page(campaign, kept_here)
    assert "In these parts no suite was asked, and no answers were judged." in text
    files = PartFiles(tmp_path)
    asked = {"name": "arc", "metric": "acc_norm", "documents": 50}
    suites = [
        Suite(**asked, model=0, value=0.3, change=None, low=None, high=None),
        Suite(**asked, model=3, value=0.34, change=0.04, low=-0.02, high=0.1),
    ]
    wins = [Win(model=3, other=0, judge="on_topic", rate=0.55, low=0.4, high=0.7, prompts=40)]
    for trial in ("sdpo", "dpo"):
        part, table = PartFiles(kept_here).read(trial)
        files.write(trial, part.model_copy(update={"suites": suites, "wins": wins}), table)
    said = page(campaign, tmp_path)
    assert said.count("| arc, acc_norm | 50 | S | 0.300 | – |") == 1
    assert said.count("| arc, acc_norm | 50 | M_3 | 0.340 | +0.040 [−0.020, +0.100] |") == 2
    assert "| dpo | M_3 over S | on_topic | 40 | 55.0% [40.0, 70.0] |" in said


@pytest.mark.parametrize(
    ("again", "asked"),
    [
        ("science-suites", "**Suites**, without examples\n\n"),
        ("science-wins", "**Win rates**\n\n"),
    ],
)
def test_the_page_shows_what_came_of_the_arm_that_was_asked_and_trained_once_more(again, asked):
    folder = ROOT / "benchmarks" / "results" / again
    campaign = Campaign.model_validate_json((folder / "campaign.json").read_bytes())
    tables = page(campaign, folder)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert tables.partition(asked)[2].strip() in text
    of_trial = [line for line in tables.splitlines() if line.startswith("| sdpo | ")]
    by_step = [line for line in of_trial if "M_" in line or ", then " in line]
    assert len(by_step) > 4
    assert all(line in text for line in by_step), "trained again, every row of the arm is the same"
