"""``training.reference: merged``: the reference of step t is the average of M_0..M_{t-1}."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench, DemoFiles, Outcome, Values
from histories import replayed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sdpo.errors import ConfigError
from sdpo.history.verify import verify_run
from sdpo.identity.model_digest import model_digest
from sdpo.report import summarise
from sdpo.store.run_folder import RunFolder
from sdpo.tokens.token_file import TokenFile

THREE_STEPS: Values = {
    "name": "merged",
    "partition": {"strategy": "random", "fractions": [0.4, 0.3, 0.3]},
    "training": {"reference": "merged", "max_steps": 2},
    "probe": {"completions": 0, "max_pairs": 8},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    """Where the run is, and what is made of it."""
    return Bench(tmp_path_factory.mktemp("merged"), tiny_recipe)


@pytest.fixture(scope="module")
def outcome(place: Bench) -> Outcome:
    """A run of three steps, each against the average of all models before it."""
    return place.run(THREE_STEPS)


def averaged(folders: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of published weights, by hand: float64, then rounded to fp32."""
    models = [load_file(folder / "model.safetensors") for folder in folders]
    return {
        name: torch.stack([each[name].double() for each in models]).mean(0).float()
        for name in models[0]
    }


def folders_before(outcome: Outcome, base: Path, step: int) -> list[Path]:
    return [base, *(outcome.run.model(number) for number in range(1, step))]


@pytest.mark.parametrize("step", [2, 3])
def test_the_reference_is_the_average_of_all_models_before_the_step(
    outcome: Outcome, demo_files: DemoFiles, step: int
) -> None:
    by_hand = averaged(folders_before(outcome, demo_files.model, step))
    folder = outcome.folder / f"merged-{step}/model"
    published = load_file(folder / "model.safetensors")
    assert published.keys() == by_hand.keys()
    for name, tensor in by_hand.items():
        torch.testing.assert_close(published[name], tensor, rtol=1e-7, atol=1e-9)
    of = [model_digest(path) for path in folders_before(outcome, demo_files.model, step)]
    node, trained = outcome.record(f"merged-{step}"), outcome.record(f"step-{step}")
    assert node["identity"]["models"] == of
    assert trained["inputs"]["reference"] == node["outputs"]["model"] == model_digest(folder)
    assert trained["inputs"]["reference"] not in of
    assert trained["inputs"]["target"] == of[-1]


def test_before_the_first_step_there_is_one_model_which_is_its_own_average(
    outcome: Outcome, demo_files: DemoFiles
) -> None:
    first = outcome.record("step-1")
    assert first["inputs"]["reference"] == model_digest(demo_files.model)
    assert first["gate"]["compared"] == "policy"
    assert not (outcome.folder / "merged-1").exists()


@torch.no_grad()
def test_log_probs_of_the_reference_are_those_of_the_average_by_transformers_alone(
    outcome: Outcome, demo_files: DemoFiles
) -> None:
    """The weights averaged by hand, in float64, on the first pairs of D_3."""
    policy = AutoModelForCausalLM.from_pretrained(demo_files.model, dtype=torch.float64).eval()
    weights = averaged(folders_before(outcome, demo_files.model, 3))
    missing, unexpected = policy.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}, "tied to the embedding"
    stored = pq.read_table(outcome.run.step(3) / "reference.parquet").to_pylist()
    plan = pq.read_table(outcome.run.plan).to_pylist()
    rows = {row["pair_id"]: row["token_row"] for row in plan}
    (path,) = (outcome.folder.parents[1] / "cache/tokens").glob("*.arrow")
    tokens = TokenFile.open(path)
    for row in stored[:4]:
        pair = tokens.row(rows[row["pair_id"]])
        for side in ("chosen", "rejected"):
            completion = getattr(pair, f"{side}_ids")
            ids = torch.tensor([np.concatenate([pair.prompt_ids, completion]).tolist()])
            logps = policy(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            taken = float(logps[len(pair.prompt_ids) - 1 :].sum())
            assert row[f"reference_{side}_logps"] == pytest.approx(taken, rel=1e-5)
    gate = outcome.record("step-3")["gate"]
    assert gate["compared"] == "reference"
    assert gate["max_abs_difference_nats"] < 1e-3


def test_report_and_lineage_name_the_average(outcome: Outcome) -> None:
    (table,) = (t for t in summarise(outcome.folder).tables if t.title == "Steps")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["Reference"] for row in rows] == ["S", "merged-2", "merged-3"]
    assert [row["Target"] for row in rows] == ["S", "M_1", "M_2"]


def test_a_second_call_does_nothing_and_a_replay_shares_the_average(
    place: Bench, outcome: Outcome
) -> None:
    assert place.run(THREE_STEPS).result.executed == ()
    assert verify_run(outcome.run).faults == []
    _, again = replayed(outcome.run, "training.beta=0.3", step=3)
    assert "merged-3" in again.result.shared
    assert "reference-3" not in again.result.executed, "its rows are cached under its own digest"
    reference = outcome.record("step-3")["inputs"]["reference"]
    assert again.record("step-3")["inputs"]["reference"] == reference
    assert verify_run(again.run).faults == []


def test_an_average_that_was_changed_is_found_and_made_again(
    place: Bench, outcome: Outcome, tmp_path: Path
) -> None:
    assert outcome.folder.is_dir()
    here = place.copy_to(tmp_path)
    run = RunFolder(here.runs / "merged")
    weights = run.path / "merged-3/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    found = [(fault.file, fault.what) for fault in verify_run(run).faults]
    assert ("merged-3/model/model.safetensors", "was changed") in found
    assert any("its digest is" in what for file, what in found if file == "merged-3/model")
    assert here.run(THREE_STEPS).result.executed == ("merged-3", "report")
    assert verify_run(run).faults == []


def test_adapters_that_are_handed_on_have_no_average(bench: Bench) -> None:
    lora: Values = {"reference": "merged", "lora_r": 4, "lora_handoff": "continue"}
    with pytest.raises(ConfigError, match=r"`merged`.*lora_handoff: merge"):
        bench.run({"training": lora})
    assert not bench.runs.exists()
