"""Curricula, end to end: features measured once, stored with their scorer, and cut at quantiles."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from numpy.typing import NDArray

from flows.cli.app import run_app
from sdpo.chain.features import column_digest
from sdpo.identity.model_digest import model_digest
from sdpo.report.health import measure_health
from sdpo.report.load import load_run
from sdpo.tokens.token_file import TokenFile


def strategy(name: str, partition: str, **settings: object) -> Values:
    group = {"strategy": partition, "fractions": [0.5, 0.5], **settings}
    return {"name": name, "partition": group}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    """Runs here share one cache; they train for one optimizer step and measure no more than so."""
    changes = {
        "training": {"max_steps": 1},
        "probe": {"completions": 0, "bootstrap_resamples": 100, "max_pairs": 8},
    }
    folder = tmp_path_factory.mktemp("curricula")
    return Bench(folder, Bench(folder, tiny_recipe).values(changes))


@pytest.fixture(scope="module")
def margin(place: Bench) -> Outcome:
    return place.run(strategy("margin", "reference_margin"))


@pytest.fixture(scope="module")
def per_token(place: Bench, margin: Outcome) -> Outcome:
    """The same pairs and M_0 as ``margin``, in three steps."""
    assert margin.folder.is_dir()
    thirds = {"fractions": [0.25, 0.25, 0.5], "order": "hard_first"}
    return place.run(strategy("per-token", "reference_margin", per_token=True, **thirds))


@pytest.fixture(scope="module")
def length(place: Bench) -> Outcome:
    return place.run(strategy("length", "length"))


@pytest.fixture(scope="module")
def rated(place: Bench, demo_files: DemoFiles) -> Outcome:
    """A curriculum over ratings from 1 to 10, of which the chosen answer has more."""
    rng = np.random.default_rng(0)
    rows = [json.loads(line) for line in demo_files.questions.read_text().splitlines()]
    distinct = list({row["prompt"]: row for row in rows}.values())[:40]
    for row in distinct:
        row["score_rejected"], row["score_chosen"] = sorted(
            float(v) for v in rng.choice(10, 2, replace=False) + 1
        )
    path = place.folder / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in distinct), encoding="utf-8")
    sources = {"data": {"sources": [{"name": "rated", "path": str(path)}]}}
    return place.run(strategy("rated", "score_gap") | sources)


def steps_of(outcome: Outcome, feature: str) -> list[NDArray[np.float64]]:
    """The feature's values in every step."""
    plan = pq.read_table(outcome.run.plan).to_pylist()
    numbers = sorted({row["step"] for row in plan} - {0})
    return [
        np.array([row[f"feature:{feature}"] for row in plan if row["step"] == number])
        for number in numbers
    ]


def scorer_of(outcome: Outcome, feature: str) -> str:
    """Digest of the scorer, as the plan has it beside the digest of the values."""
    (name, stored), *more = outcome.json("plan.json")["features"].items()
    assert (name, more) == (feature, [])
    column = pq.read_table(outcome.run.plan)[f"feature:{feature}"].to_numpy()
    assert stored["digest"] == column_digest(column)
    return str(stored["scorer"])


def probed_gamma(outcome: Outcome, *, per_token: bool = False) -> dict[str, float]:
    """Gamma under M_0 as its probe has it."""
    found = {}
    for row in pq.read_table(outcome.run.probes / "M_0.parquet").to_pylist():
        n_w, n_l = (row["chosen_tokens"], row["rejected_tokens"]) if per_token else (1, 1)
        found[row["pair_id"]] = row["chosen_logps"] / n_w - row["rejected_logps"] / n_l
    return found


def test_a_margin_curriculum_starts_with_the_largest_margins_under_m0(margin: Outcome) -> None:
    easy, hard = steps_of(margin, "gamma")
    assert easy.min() >= hard.max()
    assert abs(len(easy) - len(hard)) <= 1, "quantiles"
    probed = probed_gamma(margin)
    plan = {
        row["pair_id"]: row["feature:gamma"] for row in pq.read_table(margin.run.plan).to_pylist()
    }
    assert len(probed) > 40
    assert {key: plan[key] for key in probed} == pytest.approx(probed, abs=1e-5)


def test_a_margin_per_token_has_an_order_of_its_own(per_token: Outcome, margin: Outcome) -> None:
    first, second, third = steps_of(per_token, "gamma_per_token")
    assert first.max() <= second.min()
    assert second.max() <= third.min()
    assert len(third) == pytest.approx(len(first) + len(second), abs=2)
    probed = probed_gamma(per_token, per_token=True)
    table = pq.read_table(per_token.run.plan).to_pylist()
    plan = {row["pair_id"]: row["feature:gamma_per_token"] for row in table}
    assert {key: plan[key] for key in probed} == pytest.approx(probed, abs=1e-6)
    summed = {r["pair_id"]: r["feature:gamma"] for r in pq.read_table(margin.run.plan).to_pylist()}
    assert sorted(plan, key=lambda pair: plan[pair]) != sorted(
        summed, key=lambda pair: summed[pair]
    )


def test_gamma_is_measured_once_under_m0_for_the_plan_and_for_the_steps(
    margin: Outcome, per_token: Outcome, demo_files: DemoFiles
) -> None:
    base = model_digest(demo_files.model)
    assert scorer_of(margin, "gamma") == scorer_of(per_token, "gamma_per_token") == base
    usable = pq.read_metadata(margin.run.usable).num_rows
    assert margin.record("features")["outputs"]["scored_rows"] == {"computed": usable, "cached": 0}
    assert per_token.record("features")["outputs"]["scored_rows"] == {
        "computed": 0,
        "cached": usable,
    }
    for outcome in (margin, per_token):
        assert outcome.record("step-1")["scored_rows"]["computed"] == 0, "it is the reference"


def test_the_same_curriculum_again_does_nothing(place: Bench, margin: Outcome) -> None:
    assert margin.result.steps == 2
    assert place.run(strategy("margin", "reference_margin")).result.executed == ()


def test_a_length_curriculum_starts_with_short_pairs_and_needs_no_model(length: Outcome) -> None:
    short, long = steps_of(length, "length")
    assert short.max() <= long.min()
    assert length.run.read_record("features") is None
    cache = length.folder.parents[1] / "cache"
    (tokens,) = [
        TokenFile.open(path)
        for path in (cache / "tokens").glob("*.arrow")
        if path.stem == length.record("probe-M_0")["identity"]["tokens"]
    ]
    for row in pq.read_table(length.run.plan).to_pylist():
        pair = tokens.row(row["token_row"])
        longer = max(len(pair.chosen_ids), len(pair.rejected_ids))
        assert row["feature:length"] == len(pair.prompt_ids) + longer
    assert scorer_of(length, "length") == length.record("step-1")["inputs"]["tokenizer"]


def test_retention_of_a_curriculum_is_read_from_the_reserved_pairs_of_its_own_kind(
    length: Outcome,
) -> None:
    """Both steps have both sources: without the rule they would share all reserved pairs."""
    health = measure_health(load_run(length.folder))
    (short,) = (r for r in health.retention if r.quartile is None)
    plan = pq.read_table(length.run.plan).to_pylist()
    own, later = steps_of(length, "length")
    held = [row["feature:length"] for row in plan if row["step"] == 0]
    nearer = [v for v in held if max(0, v - own.max()) <= max(0, later.min() - v)]
    assert (short.step, short.model, short.pairs) == (1, 2, len(nearer))
    assert 0 < len(nearer) < len(held)


def test_a_rating_curriculum_starts_with_the_largest_differences(rated: Outcome) -> None:
    clear, close = steps_of(rated, "score_gap")
    assert clear.min() >= close.max() > 0
    assert clear.max() > close.min(), "not all of one difference"
    pairs = {row["pair_id"]: row for row in pq.read_table(rated.run.pairs).to_pylist()}
    for row in pq.read_table(rated.run.plan).to_pylist():
        pair = pairs[row["pair_id"]]
        assert row["feature:score_gap"] == pair["chosen_score"] - pair["rejected_score"]
    assert scorer_of(rated, "score_gap") == "", "the data itself"


def test_pairs_without_ratings_are_refused_before_anything_is_trained(
    place: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["run", place.write(strategy("unrated", "score_gap"))]) == 2
    assert "72 of 72 pairs have no score_gap (questions 36, requests 36)" in capfd.readouterr().err
    assert not (place.runs / "unrated").exists()


def test_a_length_curriculum_is_previewed_without_tokens(
    place: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["partition", place.write(strategy("preview", "length"))]) == 0
    assert "Partition plan: length" in capfd.readouterr().out


def test_a_curriculum_after_a_supervised_stage_is_cut_by_gamma_under_s(place: Bench) -> None:
    supervised = {"enabled": True, "learning_rate": 3e-3, "max_steps": 2}
    outcome = place.run(strategy("after", "reference_margin") | {"supervised": supervised})
    s = outcome.record("step-0")["outputs"]["model"]
    assert scorer_of(outcome, "gamma") == s == outcome.record("step-1")["inputs"]["reference"]
    probed = probed_gamma(outcome)
    table = pq.read_table(outcome.run.plan).to_pylist()
    stored = {row["pair_id"]: row["feature:gamma"] for row in table}
    assert {key: stored[key] for key in probed} == pytest.approx(probed, abs=1e-5)
