"""Chains whose steps differ in their objective, start from a supervised stage, or are one step."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from histories import replayed

from sdpo.identity.model_digest import model_digest


@pytest.fixture(scope="module")
def mixed_bench(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values, demo_files: DemoFiles
) -> Bench:
    """S from a fifth of the dialogues; step 1 without a reference, step 2 with one."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [json.loads(line) for line in demo_files.dialogues.read_text().splitlines()][:50]
    renamed = [
        {
            "talk": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]
    text = "".join(json.dumps(row) + "\n" for row in renamed)
    (folder / "dialogues.jsonl").write_text(text, encoding="utf-8")
    changes = {
        "supervised": {
            "enabled": True,
            "examples": "source",
            "path": str(folder / "dialogues.jsonl"),
            "columns": {"messages": "talk"},
            "fraction": 0.2,
            "learning_rate": 2e-3,
        },
        "steps": [
            {"objective": "simpo", "beta": 2.0, "reference": "none"},
            {"objective": "ipo", "beta": 0.01},
        ],
        "probe": {"max_pairs": 16, "completions": 0},
    }
    return Bench(folder, Bench(folder, tiny_recipe).values(changes))


@pytest.fixture(scope="module")
def mixed(mixed_bench: Bench) -> Outcome:
    return mixed_bench.run()


def test_the_supervised_stage_is_recorded_as_step_zero_with_its_own_rate(mixed: Outcome) -> None:
    record = mixed.record("step-0")
    assert record["kind"] == "supervised"
    assert record["identity"]["supervised"] == {"examples": "source", "fraction": 0.2}
    assert record["training"]["learning_rate"] == 2e-3
    listed = pq.read_table(mixed.folder / "supervised.parquet").num_rows
    assert 0 < record["examples"] <= round(0.2 * listed)


def test_the_supervised_stage_is_replayed_like_a_step(mixed: Outcome) -> None:
    result, again = replayed(mixed.run, step=0)
    assert result.comparison.verdict == "bitwise identical"
    assert again.result.executed == ("step-0", "report")


def test_a_step_without_reference_has_a_target_alone(mixed: Outcome) -> None:
    first, second = mixed.record("step-1"), mixed.record("step-2")
    s = mixed.record("step-0")["outputs"]["model"]
    assert first["inputs"]["target"] == s
    assert "reference" not in first["inputs"]
    assert first["models"]["reference"] == {"choice": "none", "name": "none"}
    assert first["scored_rows"] == {"computed": 0, "cached": 0}
    assert first["gate"] is None
    assert (
        second["inputs"]["reference"]
        == second["inputs"]["target"]
        == model_digest(mixed.run.model(1))
    )
    assert second["gate"]["expected_loss"] == pytest.approx(2500.0)
    assert second["gate"]["loss"] == pytest.approx(2500.0, rel=1e-3)


def test_gamma_ref_is_recorded_for_both_steps_and_says_how_much_of_d_t_it_covers(
    mixed: Outcome,
) -> None:
    pairs = {step["step"]: step["pairs"] for step in mixed.json("plan.json")["steps"]}
    for step, measured in ((1, 16), (2, pairs[2])):
        table = pq.read_table(mixed.run.probes / f"M_{step - 1}.parquet")
        assert np.sum(np.array(table["probe"].to_pylist()) == f"D_{step}") == measured
        entries = mixed.json(f"step-{step}/gamma.json")
        found = [e for e in entries if (e["model"], e["probe"]) == (f"M_{step - 1}", f"D_{step}")]
        assert (found[0]["pairs"], found[0]["whole"]) == (measured, measured == pairs[step])
    assert pairs[1] > 16


def test_a_margin_is_given_where_rewards_are_log_ratios(mixed: Outcome) -> None:
    def margin(step: int) -> float | None:
        entries = mixed.json(f"step-{step}/gamma.json")
        return next(
            e["vs_previous"]["margin"]
            for e in entries
            if e["model"] == f"M_{step}" and e["probe"] == f"D_{step}"
        )

    assert margin(1) is None
    assert margin(2) is not None


def test_report_and_card_name_each_steps_objective(mixed: Outcome) -> None:
    page = (mixed.folder / "report.html").read_text(encoding="utf-8")
    assert "SimPO, β 2, γ/β 0.5" in page
    assert "IPO, per token, β 0.01" in page
    assert "ln 2" not in page
    card = (mixed.run.model(1) / "README.md").read_text(encoding="utf-8")
    assert "SimPO (arXiv 2405.14734; beta 2, simpo_gamma_beta_ratio 0.5)" in card


def test_the_mixed_run_again_does_nothing(mixed: Outcome, mixed_bench: Bench) -> None:
    assert mixed_bench.run().result.executed == ()
    assert mixed.result.steps == 2


def test_everything_at_once_in_one_stage_from_the_base_is_one_override_each(
    bench: Bench, demo_files: DemoFiles
) -> None:
    done = bench.run(
        {"probe": {"completions": 0}, "training": {"max_steps": 1}},
        overrides=[
            "partition.groups=[[questions, requests]]",
            "training.objective=orpo_one_stage",
        ],
    )
    (step,) = done.json("plan.json")["steps"]
    assert set(step["sources"]) == {"questions", "requests"}
    record = done.record("step-1")
    assert record["inputs"]["target"] == model_digest(demo_files.model)
    assert "nll_loss" in done.metrics(1)[0]
    assert not (done.folder / "step-0").exists()


def test_the_nll_beside_an_objective_is_trained_shown_and_told(bench: Bench) -> None:
    done = bench.run(
        {
            "probe": {"completions": 0},
            "partition": {"strategy": "single"},
            "training": {"max_steps": 2, "rpo_alpha": 0.5},
        }
    )
    record, first = done.record("step-1"), done.metrics(1)[0]
    assert record["identity"]["training"]["rpo_alpha"] == 0.5
    assert record["gate"]["loss"] == pytest.approx(math.log(2), abs=1e-6), "of DPO alone"
    assert first["nll_loss"] > 1
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["nll_loss"], abs=1e-5)
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "DPO, β 0.1, + 0.5 NLL" in page
    card = (done.run.model(1) / "README.md").read_text(encoding="utf-8")
    assert "+ 0.5 NLL of the chosen side per token (arXiv 2404.19733)" in card
