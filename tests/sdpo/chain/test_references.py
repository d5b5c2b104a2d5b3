"""Reference and target of a step, end to end: what is loaded, compared, recorded and refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench, DemoFiles, Outcome, Values
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.config.load import make_config
from sdpo.errors import ConfigError, Fault, UserError
from sdpo.identity.model_digest import model_digest
from sdpo.identity.tokenizer_digest import tokenizer_digest
from sdpo.report import summarise
from sdpo.report.load import load_run
from sdpo.report.numbers import measure_run
from sdpo.store.logp_cache import LogpCache
from sdpo.system.files import read_json
from sdpo.tokens.token_file import TokenFile

LN_2 = math.log(2)
FAST: Values = {"probe": {"completions": 0, "bootstrap_resamples": 100, "max_pairs": 8}}
"""What every run here does without."""


def run_with(bench: Bench, name: str, training: Values, **changes: Any) -> Outcome:
    return bench.run({**FAST, "name": name, "training": training, **changes})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    """Runs here share one cache."""
    return Bench(tmp_path_factory.mktemp("references"), tiny_recipe)


@pytest.fixture(scope="module")
def plain(place: Bench) -> Outcome:
    """sDPO as it is: step 1 is the same in every run here."""
    return run_with(place, "plain", {})


@pytest.fixture(scope="module")
def fixed(place: Bench, plain: Outcome) -> Outcome:
    """The reference stays S."""
    assert plain.folder.is_dir()
    return run_with(place, "fixed", {"reference": "base"})


@pytest.fixture(scope="module")
def restarted(place: Bench, plain: Outcome) -> Outcome:
    """The target restarts at S while the reference moves on: the paper's figure 3."""
    assert plain.folder.is_dir()
    return run_with(place, "restarted", {"target": "base"})


@pytest.fixture(scope="module")
def guided(place: Bench) -> Outcome:
    """Pre-DPO: one step over everything."""
    changes = {"partition": {"strategy": "single"}}
    return run_with(place, "guided", {"reference": "guided", "target": "base"}, **changes)


def gamma_of(path: Path, columns: str) -> dict[str, float]:
    table = pq.read_table(path)
    names = table.column_names
    ids = table["pair_id"].to_pylist()
    chosen, rejected = (
        table[next(n for n in names if n == f"{columns}{side}_logps")].to_numpy()
        for side in ("chosen", "rejected")
    )
    return dict(zip(ids, chosen.astype(np.float64) - rejected, strict=True))


def models_at(outcome: Outcome, step: int) -> tuple[str, str]:
    said = outcome.record(f"step-{step}")["models"]
    return said["reference"]["name"], said["target"]["name"]


# --- what the choices stand for


def test_by_default_the_step_before_is_reference_and_target(plain: Outcome) -> None:
    assert models_at(plain, 2) == ("M_1", "M_1")
    assert plain.record("step-2")["gate"]["compared"] == "policy"


def test_with_reference_base_every_step_is_compared_with_s(
    fixed: Outcome, plain: Outcome, demo_files: DemoFiles
) -> None:
    assert models_at(fixed, 2) == ("M_0", "M_1")
    second = fixed.record("step-2")
    assert second["inputs"]["reference"] == model_digest(demo_files.model)
    assert second["inputs"]["target"] == fixed.record("step-1")["outputs"]["model"]
    stored = gamma_of(fixed.run.step(2) / "reference.parquet", "reference_")
    probe = pq.read_table(plain.folder / "probes/M_0.parquet").to_pylist()
    measured = {
        row["pair_id"]: row["chosen_logps"] - row["rejected_logps"]
        for row in probe
        if row["probe"] == "D_2"
    }
    assert measured == pytest.approx({key: stored[key] for key in measured}, abs=1e-6)


def test_a_choice_that_changes_nothing_gives_the_same_step(fixed: Outcome, plain: Outcome) -> None:
    """M_0 is what step 1 has before it in any case: identity is in the models, not in the words."""
    first, other = plain.record("step-1"), fixed.record("step-1")
    assert first["identity"] == other["identity"]
    assert first["outputs"] == other["outputs"]
    assert first["identity"]["inputs"]["reference"] == first["identity"]["inputs"]["target"]


def test_with_target_base_training_restarts_at_s(restarted: Outcome, demo_files: DemoFiles) -> None:
    assert models_at(restarted, 2) == ("M_1", "M_0")
    second = restarted.record("step-2")
    assert second["inputs"]["target"] == model_digest(demo_files.model)
    assert second["inputs"]["reference"] == restarted.record("step-1")["outputs"]["model"]


def test_the_first_batch_is_the_loss_of_the_target_against_the_reference(
    restarted: Outcome,
) -> None:
    """Against the stored log-probs of both models, by hand; above ln 2, and by how much."""
    gate = restarted.record("step-2")["gate"]
    assert gate["compared"] == "reference"
    assert gate["loss"] == pytest.approx(restarted.metrics(2)[0]["loss"], abs=1e-5)
    assert gate["excess_loss"] == pytest.approx(gate["loss"] - LN_2, abs=1e-12)
    assert gate["excess_loss"] > 0.001
    assert 0 <= gate["max_abs_difference_nats"] < gate["tolerance_nats"]


def test_a_guide_is_trained_on_the_steps_data_and_the_step_from_the_same_start(
    guided: Outcome, demo_files: DemoFiles
) -> None:
    base = model_digest(demo_files.model)
    guide, step = guided.record("guide-1"), guided.record("step-1")
    assert guide["inputs"]["reference"] == guide["inputs"]["target"] == base
    assert step["inputs"]["target"] == base
    assert step["inputs"]["reference"] == guide["outputs"]["model"] != base
    assert guide["inputs"]["partition"] == step["inputs"]["partition"]
    assert models_at(guided, 1) == ("guide-1", "M_0")
    assert model_digest(guided.folder / "guide-1/model") == guide["outputs"]["model"]
    assert step["outputs"]["model"] not in (base, guide["outputs"]["model"])


def test_the_gates_numbers_are_those_of_the_guide_itself(guided: Outcome) -> None:
    gate = guided.record("step-1")["gate"]
    assert gate["compared"] == "reference"
    assert gate["max_abs_difference_nats"] < 1e-3
    assert gate["excess_loss"] > 0


# --- what is loaded


def test_a_reference_that_is_not_cached_is_scored_by_a_stage_of_its_own(fixed: Outcome) -> None:
    assert "reference-2" in fixed.result.executed
    assert "rows are not cached" in fixed.reason("reference-2")
    assert fixed.record("step-2")["scored_rows"]["computed"] == 0


def test_a_reference_whose_rows_are_cached_and_checked_is_not_loaded(
    place: Bench, fixed: Outcome, guided: Outcome
) -> None:
    again = run_with(place, "fixed-again", {"reference": "base", "beta": 0.3})
    assert fixed.folder.is_dir()
    assert "step-2" in again.result.executed
    assert "reference-2" not in again.result.executed
    assert again.record("step-2")["gate"]["max_abs_difference_nats"] == pytest.approx(
        fixed.record("step-2")["gate"]["max_abs_difference_nats"]
    )
    assert "reference-1" not in guided.result.executed, "the guide's own stage scored it"


def stale(outcome: Outcome, digest: str, *, step: int) -> None:
    """Move a model's log-probs on D_step, as another version of the code might have left them."""
    root = outcome.folder.parents[1] / "cache"
    tokens = TokenFile.open(next((root / "tokens").glob("*.arrow")))
    plan = pq.read_table(outcome.run.plan).to_pylist()
    moved = {tokens.row(r["token_row"]).row_digest for r in plan if r["step"] == step}
    for folder in (root / "logps").iterdir():
        key = read_json(folder / "key.json")
        if key["model"] != digest:
            continue
        rows = pa.concat_tables([pq.read_table(part) for part in folder.glob("*.parquet")])
        for part in folder.glob("*.parquet"):
            part.unlink()
        cache = LogpCache(folder.parents[1], key)
        assert cache.folder == folder
        is_moved = np.array([row in moved for row in rows["row_digest"].to_pylist()])
        for mask, shift in ((is_moved, 0.5), (~is_moved, 0.0)):
            part = rows.filter(pa.array(mask))
            chosen, rejected = part["chosen_logps"].to_numpy(), part["rejected_logps"].to_numpy()
            cache.add(part["row_digest"].to_pylist(), chosen + shift, rejected)


def test_a_stale_cache_is_caught_though_policy_and_reference_differ(
    place: Bench, fixed: Outcome, tmp_path: Path, demo_files: DemoFiles
) -> None:
    assert fixed.folder.is_dir()
    here = place.copy_to(tmp_path)
    found = run_with(here, "fixed", {"reference": "base"})
    assert found.result.executed == ()
    stale(found, model_digest(demo_files.model), step=2)
    with pytest.raises(Fault, match=r"reference-2: M_0 and cached reference log-probs disagree"):
        run_with(here, "stale", {"reference": "base"}, steps=[{}, {"beta": 0.2}])


def test_what_other_versions_have_checked_is_checked_again(
    place: Bench, fixed: Outcome, tmp_path: Path
) -> None:
    assert fixed.folder.is_dir()
    here = place.copy_to(tmp_path)
    for note in (tmp_path / "cache/logps").rglob("checked-*.json"):
        content = json.loads(note.read_text())
        content["software"]["torch"] = "1.0"
        note.write_text(json.dumps(content))
    again = run_with(here, "newer", {"reference": "base"}, steps=[{}, {"beta": 0.2}])
    assert again.reason("reference-2") == "its cached rows were not checked under these versions"
    assert again.record("step-2")["scored_rows"]["computed"] == 0


# --- models that the recipe names


@pytest.fixture(scope="module")
def named(place: Bench, plain: Outcome, foreign_model: Path) -> Outcome:
    """Step 1 against a foreign model, step 2 against a model of another run."""
    steps = [
        {"reference": "model", "reference_model": str(foreign_model)},
        {"reference": "model", "reference_model": str(plain.run.model(1))},
    ]
    return run_with(place, "named", {}, steps=steps)


def test_a_named_model_is_the_reference(
    named: Outcome, plain: Outcome, foreign_model: Path
) -> None:
    first, second = named.record("step-1"), named.record("step-2")
    assert first["inputs"]["reference"] == model_digest(foreign_model)
    assert first["inputs"]["reference_tokenizer"] == tokenizer_digest(foreign_model)
    assert second["inputs"]["reference"] == plain.record("step-1")["outputs"]["model"]
    assert "reference_tokenizer" not in second["inputs"], "ids mean the same to both"
    assert "reference-2" not in named.result.executed, "its rows were cached by the other run"
    assert str(foreign_model) not in json.dumps(first["identity"]), "a path bears no identity"


@torch.no_grad()
def test_a_foreign_reference_scores_the_same_text_in_its_own_tokens(
    named: Outcome, foreign_model: Path
) -> None:
    """Against transformers alone: the foreign template, tokenizer and logits in float64."""
    policy = AutoModelForCausalLM.from_pretrained(foreign_model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(foreign_model)
    stored = pq.read_table(named.run.step(1) / "reference.parquet").to_pylist()[:5]
    texts = {row["pair_id"]: row for row in pq.read_table(named.run.pairs).to_pylist()}
    for row in stored:
        pair = texts[row["pair_id"]]
        prompt = tokenizer.apply_chat_template(
            pair["prompt"], add_generation_prompt=True, return_dict=False
        )
        for side in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(pair["prompt"] + pair[side], return_dict=False)
            assert ids[: len(prompt)] == prompt
            logps = policy(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            taken = logps.gather(1, torch.tensor(ids)[1:, None])[len(prompt) - 1 :]
            assert row[f"reference_{side}_logps"] == pytest.approx(float(taken.sum()), rel=1e-5)
            assert row[f"{side}_tokens"] is None, "the policy's tokens say nothing of it"


def test_of_a_foreign_reference_it_is_said_that_nothing_is_per_token(named: Outcome) -> None:
    said = [event["message"] for event in named.events if event["event"] == "warning"]
    assert any("statistics per token are not given" in message for message in said)
    references = measure_run(load_run(named.folder)).references
    assert references[1].per_token_mean is None
    assert references[2].per_token_mean is not None
    stored = gamma_of(named.run.step(1) / "reference.parquet", "reference_")
    assert references[1].mean == pytest.approx(np.mean(list(stored.values())), abs=1e-4)


def table_of(outcome: Outcome, title: str) -> list[dict[str, str]]:
    (table,) = (t for t in summarise(outcome.folder).tables if t.title == title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_the_tables_of_every_run_name_objective_reference_and_target(
    plain: Outcome,
    fixed: Outcome,
    restarted: Outcome,
    guided: Outcome,
    named: Outcome,
    foreign_model: Path,
) -> None:
    expected = [
        (plain, [("S", "S"), ("M_1", "M_1")]),
        (fixed, [("S", "S"), ("S", "M_1")]),
        (restarted, [("S", "S"), ("M_1", "S")]),
        (guided, [("guide-1", "S")]),
        (named, [(foreign_model.name, "S"), ("plain/step-1", "M_1")]),
    ]
    for outcome, models in expected:
        rows = table_of(outcome, "Steps")
        assert [(row["Reference"], row["Target"]) for row in rows] == models
        assert {row["Objective"] for row in rows} == {"DPO, β 0.1"}
        page = re.sub(r"<[^>]+>", "", outcome.result.report.read_text(encoding="utf-8"))
        assert all(row["Mean γ_ref on D_t"] in page for row in rows)


def test_the_report_says_by_how_much_the_first_loss_is_above_ln_2(restarted: Outcome) -> None:
    first, second = table_of(restarted, "Training")
    assert first["First loss, above agreement"] in ("+0.0000", "−0.0000", "0.0000")
    excess = restarted.record("step-2")["gate"]["excess_loss"]
    assert second["First loss, above agreement"] == f"{excess:+.4f}"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"reference": "none"}, "reference is `none`, but objective dpo compares the policy"),
        ({"reference": "model"}, r"training\.reference_model is empty"),
        (
            {"reference": "model", "reference_model": "/nowhere/at all"},
            r"training\.reference_model: no folder at /nowhere/at all",
        ),
        ({"reference_update": {"every": 512, "alpha": 0.6}}, "incompatible with cached reference"),
    ],
)
def test_a_reference_that_cannot_be_is_refused_before_anything_is_done(
    bench: Bench, training: Values, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        bench.run({"training": training})
    assert not (bench.runs / "tiny").exists()


@pytest.mark.parametrize("objective", ["ipo", "dpo_norm"])
def test_a_foreign_reference_is_refused_where_the_objective_counts_tokens(
    bench: Bench, foreign_model: Path, objective: str
) -> None:
    reference = {"reference": "model", "reference_model": str(foreign_model)}
    steps = [{}, reference | {"objective": objective}]
    with pytest.raises(ConfigError, match=r"steps\.1.* has another vocabulary .* divides by"):
        bench.run({"steps": steps})
    assert not (bench.runs / "tiny").exists()


def test_a_step_of_its_own_names_its_refused_key(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"steps\.0\.reference_update: moving the reference"):
        make_config(bench.values({"steps": [{"reference_update": {"every": 1}}]}))
