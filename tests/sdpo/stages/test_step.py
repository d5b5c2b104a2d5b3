import json
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.config import EvaluationConfig, SupervisedConfig, TrackingConfig, TrainingConfig
from sdpo.data.supervised import prepare_supervised
from sdpo.errors import DivergedError, GateError, ModelError
from sdpo.identity.model_digest import model_digest
from sdpo.inputs.demo.text import dialogues
from sdpo.model.sequence_scorer import TokenSequence
from sdpo.processes.step_caches import open_cache
from sdpo.store.logp_cache import LogpCache
from sdpo.tokens.tokenise import tokenise_supervised

from ..training_helpers.models import hf_logps
from ..training_helpers.runs import prepare_run

BETA = 0.2
TRAINING = TrainingConfig(
    beta=BETA, learning_rate=1e-3, batch_size=4, epochs=2, seed=3, precision="fp32"
)
PAIRS = {0: 5, 1: 10, 2: 7}

old_checkpointing_name = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps, evaluated every second optimizer step and tracked."""
    prepared = prepare_run(tmp_path_factory.mktemp("run"), pairs=PAIRS)
    options = {
        "measure_output": True,
        "evaluation": EvaluationConfig(every=2),
        "tracking": TrackingConfig(tools=["tensorboard"]),
    }
    prepared.run_step(1, TRAINING, measure_input=True, **options)
    prepared.run_step(2, TRAINING, **options)
    return prepared


def model_of(run, number: int):
    folder = run.folder.model(number) if number else run.model
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


@torch.no_grad()
def exact_logps(run, number: int, rows: list[dict]) -> np.ndarray:
    """Chosen and rejected log-probs of plan rows under M_number, by its own float64 logits."""
    policy, tokens = model_of(run, number), run.token_file()
    found = []
    for row in rows:
        pair = tokens.row(row["token_row"])
        for side in (pair.chosen_ids, pair.rejected_ids):
            ids = np.concatenate([pair.prompt_ids, side])
            found.append(float(hf_logps(policy, TokenSequence(ids, len(pair.prompt_ids)))))
    return np.array(found).reshape(-1, 2)


@pytest.mark.parametrize("step", [1, 2])
def test_the_record_says_what_made_the_model(run, step):
    record = run.record(step)
    assert record["step"] == step
    assert record["kind"] == "preference"
    assert record["identity"] == {"step": step, "beta": BETA}
    assert {"reference", "target", "partition", "reference_logps"} <= set(record["inputs"])
    assert record["outputs"]["model"] == model_digest(run.folder.model(step))
    assert record["pairs"] == PAIRS[step]
    assert record["optimizer_steps"] == {1: 6, 2: 4}[step]
    assert set(record["timings_s"]) >= {"load", "score", "gate", "train", "publish"}
    assert all(seconds >= 0 for seconds in record["timings_s"].values())
    environment = record["environment"]
    assert (environment["device"], environment["processes"], environment["threads"]) == (
        "cpu",
        1,
        1,
    )
    assert environment["versions"]["torch"] == torch.__version__
    assert TrainingConfig(**record["training"]) == TRAINING


@pytest.mark.parametrize("step", [1, 2])
def test_the_gate_is_in_the_record(run, step):
    gate = run.record(step)["gate"]
    assert gate["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert gate["expected_loss"] == np.log(2)
    assert 0 <= gate["max_abs_difference_nats"] < 1e-3
    first_batch = min(TRAINING.batch_size, PAIRS[step])
    cached = PAIRS[2] if step == 2 else 0  # measured of M_1 when it was made
    assert gate["pairs"] == max(first_batch, cached), "of the rest what came from the cache"


def test_the_second_step_starts_from_what_the_first_one_published(run):
    first, second = run.record(1), run.record(2)
    assert second["inputs"]["reference"] == first["outputs"]["model"]
    assert second["inputs"]["target"] == first["outputs"]["model"]
    assert second["outputs"]["model"] != first["outputs"]["model"]


def test_what_was_measured_of_m1_on_d2_is_the_reference_of_step_2(run):
    assert run.record(1)["scored_rows"] == {"computed": 10, "cached": 0}
    assert run.record(2)["scored_rows"] == {"computed": 0, "cached": 7}


@pytest.mark.parametrize("step", [1, 2])
def test_the_reference_file_holds_the_previous_models_log_probs(run, step):
    table = pq.read_table(run.folder.step(step) / "reference.parquet")
    rows = run.rows_of(step)
    assert table["pair_id"].to_pylist() == [row["pair_id"] for row in rows]
    exact = exact_logps(run, step - 1, rows)
    for column, values in zip(("chosen", "rejected"), exact.T, strict=True):
        found = table[f"reference_{column}_logps"].to_numpy()
        assert (np.abs(found - values) <= 1e-6 * np.abs(values) + 1e-4).all()
    tokens = run.token_file()
    lengths = [len(tokens.row(row["token_row"]).chosen_ids) for row in rows]
    assert table["chosen_tokens"].to_pylist() == lengths


def test_every_file_of_a_step_is_under_its_record(run):
    record = run.record(1)
    assert run.folder.damage(record) == []
    names = {name.removeprefix("step-1/") for name in record["files"]}
    assert {"reference.parquet", "metrics.jsonl", "model/model.safetensors"} <= names
    assert not any(name.startswith(("tracking", "gamma", "record")) for name in names)


def test_the_published_model_has_the_tokenizer_files_byte_for_byte(run):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run.folder.model(2) / name).read_bytes() == (run.model / name).read_bytes()
    config = json.loads((run.folder.model(2) / "generation_config.json").read_text())
    original = json.loads((run.model / "generation_config.json").read_text())
    assert config["eos_token_id"] == original["eos_token_id"]


def test_the_card_names_the_lineage(run):
    lineage = json.loads((run.folder.model(2) / "lineage.json").read_text())
    assert [entry["step"] for entry in lineage["steps"]] == [1, 2]
    assert lineage["steps"][1]["inputs"]["reference"] == lineage["steps"][0]["outputs"]["model"]
    assert run.record(1)["outputs"]["model"][:12] in (run.folder.model(2) / "README.md").read_text()


def test_metrics_have_a_line_per_step_and_the_evaluations_between_them(run):
    lines = run.metrics(1)
    kinds = [(line["step"], "eval_loss" in line) for line in lines]
    assert kinds == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True),
        (5, False), (6, False), (6, True),
    ]  # fmt: skip
    assert lines[0]["loss"] == pytest.approx(run.record(1)["gate"]["loss"], abs=1e-5)
    assert [line["epoch"] for line in lines if "epoch" in line] == pytest.approx(
        [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]
    )


def test_the_margin_on_the_reserve_is_beta_times_the_rise_of_gamma(run):
    """The trainer's evaluation and the probes of M_0 and M_1 measure the same thing."""
    gamma = []
    for name in ("M_0", "M_1"):
        table = pq.read_table(run.folder.probes / f"{name}.parquet").to_pandas()
        held = table[table["probe"] == "reserve:tests"]
        assert len(held) == PAIRS[0]
        gamma.append((held["chosen_logps"] - held["rejected_logps"]).mean())
    margin = run.metrics(1)[-1]["eval_rewards/margins"]
    assert margin == pytest.approx(BETA * (gamma[1] - gamma[0]), abs=1e-4)
    assert margin > 0.01, "and the step has taught something"


def test_the_probe_of_the_published_model_is_that_of_its_files(run):
    table = pq.read_table(run.folder.probes / "M_2.parquet").to_pandas()
    by_row = {row["pair_id"]: row for step in PAIRS for row in run.rows_of(step)}
    exact = exact_logps(run, 2, [by_row[pair_id] for pair_id in table["pair_id"]])
    np.testing.assert_allclose(table["chosen_logps"], exact[:, 0], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(table["rejected_logps"], exact[:, 1], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("step", [1, 2])
def test_tensorboard_has_the_curve_in_the_steps_own_folder(run, step):
    (events,) = (run.folder.step(step) / "tracking" / "sdpo").glob("events.out.tfevents.*")
    log = EventAccumulator(str(events)).Reload()
    curve = [line["loss"] for line in run.metrics(step) if "loss" in line]
    assert [scalar.value for scalar in log.Scalars("loss")] == pytest.approx(curve, rel=1e-6)
    assert "eval_loss" in log.Tags()["scalars"]


def test_the_same_plan_twice_is_bitwise_the_same_model(run, tmp_path):
    again = prepare_run(tmp_path, pairs=PAIRS)
    again.run_step(1, TRAINING, evaluation=EvaluationConfig(every=2))
    assert again.metrics(1) == run.metrics(1)
    assert again.record(1)["outputs"] == run.record(1)["outputs"]
    assert again.record(1)["inputs"] == run.record(1)["inputs"]


def test_a_model_that_is_not_the_one_of_the_run_is_refused(run):
    with pytest.raises(ModelError, match="not the model this run was made with"):
        run.run_step(1, TRAINING, input_digest="0" * 64)


def test_a_stale_cache_stops_the_step_at_the_gate_and_leaves_no_record(tmp_path):
    fresh = prepare_run(tmp_path, pairs={1: 6})
    spec, tokens = fresh.spec(1, TRAINING), fresh.token_file()
    stale = open_cache(spec, spec.input_digest)
    assert isinstance(stale, LogpCache)
    digests = [tokens.row(row["token_row"]).row_digest for row in fresh.rows_of(1)]
    stale.add(digests, np.full(6, -30.0), np.full(6, -30.0))
    with pytest.raises(GateError, match=r"-30\.0"):
        fresh.run_step(1, TRAINING)
    assert fresh.folder.read_record("step-1") is None
    assert not fresh.folder.model(1).exists()


def test_a_step_that_diverges_keeps_what_was_there(tmp_path):
    fresh = prepare_run(tmp_path, pairs={1: 4, 2: 8})
    fresh.run_step(1, TRAINING, measure_output=True)
    digest = fresh.record(1)["outputs"]["model"]
    wild = TRAINING.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(DivergedError) as error:
        fresh.run_step(2, wild)
    batch = {row["pair_id"] for row in fresh.rows_of(2)}
    assert len([pair_id for pair_id in batch if pair_id in str(error.value)]) == 4
    assert fresh.folder.read_record("step-2") is None
    assert not fresh.folder.model(2).exists()
    assert fresh.folder.damage(fresh.record(1)) == []
    assert model_digest(fresh.folder.model(1)) == digest
    fresh.run_step(2, TRAINING)
    assert fresh.record(2)["scored_rows"] == {"computed": 0, "cached": 8}


@old_checkpointing_name
def test_with_lora_the_next_step_starts_fresh_from_the_merged_model(tmp_path):
    lora = TRAINING.model_copy(update={"lora_r": 4, "learning_rate": 1e-2})
    fresh = prepare_run(tmp_path, pairs={1: 8, 2: 6})
    fresh.run_step(1, lora, measure_output=True)
    base = load_file(fresh.model / "model.safetensors")
    merged = load_file(fresh.folder.model(1) / "model.safetensors")
    assert {(n, t.shape, t.dtype) for n, t in merged.items()} == {
        (n, t.shape, t.dtype) for n, t in base.items()
    }
    moved = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    assert moved == {name for name in base if "_proj" in name}, "linear layers alone"
    assert not list(fresh.folder.model(1).glob("adapter*"))

    # M_1 was measured on D_2 with its adapters just merged; the gate compares that with its files.
    fresh.run_step(2, lora)
    record = fresh.record(2)
    assert record["scored_rows"] == {"computed": 0, "cached": 6}
    assert record["gate"]["max_abs_difference_nats"] < 1e-3
    assert record["gate"]["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_the_supervised_stage_learns_the_chosen_sides_and_never_a_reserved_prompt(tmp_path):
    fresh = prepare_run(tmp_path, pairs={0: 6, 1: 10})
    supervised = SupervisedConfig(enabled=True, fraction=0.5)
    training = TRAINING.model_copy(update={"epochs": 4})
    fresh.run_step(1, training, name="step-0", step=0, task="supervised", supervised=supervised)
    record = fresh.record(0)
    assert record["kind"] == "supervised"
    assert record["examples"] == 5, "half of the ten that are not reserved"
    assert "gate" not in record
    losses = [line["loss"] for line in fresh.metrics(0)]
    assert losses[0] == pytest.approx(np.log(768), rel=0.05), "nearly uniform at first"
    assert losses[-1] < losses[0] - 0.3
    assert record["outputs"]["model"] == model_digest(fresh.folder.model(0))


def own_examples(run, count: int):
    """Supervised data of the run's own: as many dialogues, tokenised."""
    source = run.folder.path / "dialogues.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in dialogues()[:count]))
    settings = SupervisedConfig(enabled=True, examples="source", path=str(source))
    prepare_supervised(settings, default_format="chat", out=run.folder.path)
    out = run.folder.path / "dialogues.arrow"
    tokenise_supervised(
        run.folder.path / "supervised.parquet",
        AutoTokenizer.from_pretrained(run.model),
        max_length=256,
        clock=datetime(2024, 1, 2, tzinfo=UTC),
        out=out,
    )
    return settings, out


@pytest.mark.parametrize("kind", ["chosen", "source"])
@pytest.mark.parametrize(("fraction", "examples"), [(0.05, 2), (0.1, 4), (1.0, 40)])
def test_the_supervised_stage_takes_the_fraction_asked_for(tmp_path, kind, fraction, examples):
    fresh = prepare_run(tmp_path, pairs={0: 2, 1: 40})
    supervised, tokens = SupervisedConfig(enabled=True), None
    if kind == "source":
        supervised, tokens = own_examples(fresh, 40)
    fresh.run_step(
        1,
        TRAINING.model_copy(update={"max_steps": 1}),
        name="step-0",
        step=0,
        task="supervised",
        supervised=supervised.model_copy(update={"fraction": fraction}),
        supervised_tokens=tokens,
    )
    assert fresh.record(0)["examples"] == examples


def test_an_objective_without_reference_scores_none_and_passes_no_gate(tmp_path):
    fresh = prepare_run(tmp_path, pairs={0: 3, 1: 8, 2: 6})
    simpo = TRAINING.model_copy(update={"objective": "simpo", "beta": 2.0})
    fresh.run_step(1, simpo)
    record = fresh.record(1)
    assert record["scored_rows"] == {"computed": 0, "cached": 0}
    assert record["gate"] is None
    assert record["gate_skipped"].startswith("objective simpo reads no reference")
    assert not {"score", "gate"} & record["timings_s"].keys()
    assert "reference_logps" not in record["inputs"]
    assert not (fresh.folder.step(1) / "reference.parquet").exists()
    assert not list(fresh.cache.rglob("*.parquet")), "not one row was scored"
    lines = fresh.metrics(1)
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert "eval_rewards/margins" in lines[-1]


def test_an_objective_without_reference_starts_where_its_formula_says(tmp_path):
    """The first batch's loss, from M_0's own float64 logits."""
    fresh = prepare_run(tmp_path, pairs={1: 4})
    orpo = TRAINING.model_copy(update={"objective": "orpo_one_stage", "preference_weight": 0.3})
    fresh.run_step(1, orpo)
    rows = fresh.rows_of(1)
    pairs = [fresh.token_file().row(row["token_row"]) for row in rows]
    tokens = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for p in pairs])
    a = exact_logps(fresh, 0, rows) / tokens
    odds = a - np.log(-np.expm1(a))
    expected = -a[:, 0] + 0.3 * np.log1p(np.exp(-(odds[:, 0] - odds[:, 1])))
    first = fresh.metrics(1)[0]
    assert first["loss"] == pytest.approx(expected.mean(), abs=1e-4)
    assert first["nll_loss"] == pytest.approx(-a[:, 0].mean(), abs=1e-4)
    assert first["odds_capped"] == 0


def test_what_another_objective_scored_is_gone_when_the_step_is_made_again(tmp_path):
    fresh = prepare_run(tmp_path, pairs={1: 4})
    fresh.run_step(1, TRAINING)
    assert (fresh.folder.step(1) / "reference.parquet").is_file()
    fresh.run_step(1, TRAINING.model_copy(update={"objective": "sft"}))
    assert not (fresh.folder.step(1) / "reference.parquet").exists()
    assert "step-1/reference.parquet" not in fresh.record(1)["files"]
