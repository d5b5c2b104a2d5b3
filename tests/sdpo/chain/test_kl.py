"""KL of a run, end to end: what is written, what is shown, what is not done twice."""

from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench, Outcome, Values
from transformers import AutoModelForCausalLM

from flows.cli.app import run_app
from sdpo.config.load import make_config
from sdpo.tokens.token_file import TokenFile

PROBE: Values = {
    "completions": 0,
    "bootstrap_resamples": 100,
    "max_pairs": 8,
    "kl_prompts": 3,
    "kl_samples": 2,
    "kl_tokens": 10,
    "kl_paper_mode": True,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    return Bench(tmp_path_factory.mktemp("kl"), tiny_recipe)


@pytest.fixture(scope="module")
def measured(place: Bench) -> Outcome:
    return place.run({"probe": PROBE})


def entry_of(outcome: Outcome, step: int, against: str, sampler: str = "exact") -> Any:
    entries = outcome.json(f"step-{step}/kl.json")
    (found,) = (e for e in entries if (e["against"], e["sampler"]) == (against, sampler))
    return found


def test_each_model_is_compared_with_the_one_before_and_with_s(measured: Outcome) -> None:
    def pairs(step: int) -> list[tuple[str, str]]:
        return [(e["against"], e["sampler"]) for e in measured.json(f"step-{step}/kl.json")]

    assert pairs(1) == [("M_0", "exact"), ("M_0", "paper")], "once where they are one model"
    assert sorted(pairs(2)) == sorted((m, s) for m in ("M_0", "M_1") for s in ("exact", "paper"))
    for step, against in ((1, "M_0"), (2, "M_1"), (2, "M_0")):
        entry = entry_of(measured, step, against)
        assert (entry["prompts"], entry["sequences"]) == (3, 6)
        assert entry["per_sequence"]["kl"]["mean"] > 0
        assert entry["per_token"]["kl"]["low"] is not None


@torch.no_grad()
def test_the_numbers_are_those_of_the_published_models_own_logits(measured: Outcome) -> None:
    """KL(M_2||M_1) along the stored samples, by transformers in float64."""
    policy, other = (
        AutoModelForCausalLM.from_pretrained(measured.run.model(step), dtype=torch.float64)
        for step in (2, 1)
    )
    tokens = TokenFile.open(next((measured.folder.parents[1] / "cache/tokens").glob("*.arrow")))
    prompts = {
        row["prompt_key"]: tokens.row(row["token_row"]).prompt_ids
        for row in pq.read_table(measured.run.plan).to_pylist()
        if row["step"] == 0
    }
    samples = pq.read_table(measured.run.probes / "M_2.samples.parquet").to_pylist()
    rows = pq.read_table(measured.run.probes / "M_2.kl.parquet").to_pylist()
    found = {(r["prompt_key"], r["sample"]): r for r in rows if
             (r["against"], r["sampler"]) == ("M_1", "exact")}  # fmt: skip
    for sample in (s for s in samples if s["sampler"] == "exact"):
        prompt = prompts[sample["prompt_key"]]
        ids = torch.tensor([[*prompt.tolist(), *sample["token_ids"]]])
        first, last = len(prompt) - 1, ids.shape[1] - 1
        logp, logq = (
            model(input_ids=ids).logits[0, first:last].log_softmax(-1) for model in (policy, other)
        )
        kl = (logp.exp() * (logp - logq)).sum()
        log_ratio = (logp - logq).gather(1, ids[0, first + 1 :, None]).sum()
        row = found[sample["prompt_key"], sample["sample"]]
        assert row["tokens"] == len(sample["token_ids"]) <= 10
        assert row["kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
        assert row["k1"] == pytest.approx(float(log_ratio), rel=1e-3, abs=1e-4)


def test_the_papers_number_leaves_out_the_first_token(measured: Outcome) -> None:
    rows = pq.read_table(measured.run.probes / "M_1.kl.parquet").to_pylist()
    samples = pq.read_table(measured.run.probes / "M_1.samples.parquet").to_pylist()
    lengths = [len(s["token_ids"]) for s in samples if s["sampler"] == "paper"]
    assert [r["tokens"] for r in rows if r["sampler"] == "paper"] == [n - 1 for n in lengths]


def test_another_run_of_the_same_models_samples_nothing_again(
    place: Bench, measured: Outcome
) -> None:
    again = place.run({"name": "again", "probe": PROBE})
    assert not list((again.folder / "logs").glob("kl-*")), "no stage was started"
    assert again.json("step-2/kl.json") == measured.json("step-2/kl.json")


def test_measuring_changes_no_step_and_no_probe(place: Bench, measured: Outcome) -> None:
    without = place.run({"name": "without", "probe": PROBE | {"kl_prompts": 0}})
    for step in ("step-1", "step-2"):
        assert without.record(step)["identity"] == measured.record(step)["identity"]
    for number in range(3):
        name = f"probe-M_{number}"
        assert without.record(name)["identity"] == measured.record(name)["identity"]
    assert not (without.folder / "step-1/kl.json").exists()


def test_status_and_report_show_it(measured: Outcome, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(["status", "tiny", "--runs-dir", str(measured.folder.parent)]) == 0
    shown = capfd.readouterr().out
    for text in ("KL S", "KL previous", "reference", "M_1", "DPO"):
        assert text in shown
    mean = entry_of(measured, 2, "M_0")["per_sequence"]["kl"]["mean"]
    assert f"{mean:.3f}" in shown
    assert f"{mean:.3f}" in measured.result.report.read_text(encoding="utf-8")


def test_settings_of_kl_without_prompts_are_said_to_have_no_effect() -> None:
    from sdpo.config import settings_without_effect

    made = make_config({"probe": {"kl_tokens": 9}})
    assert settings_without_effect(made) == ["probe.kl_tokens has no effect: probe.kl_prompts is 0"]
