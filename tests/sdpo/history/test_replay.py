"""A step made again: shared before it, executed, followed, compared; the origin only read."""

import os
import re
import shutil

import pytest
from bench import Bench, Outcome
from histories import contents, flip, origin, replayed

from sdpo.errors import ConfigError, ModelError, RunExistsError, UserError
from sdpo.history.dryrun import NodeLine
from sdpo.history.replay import check, look, plan_replay
from sdpo.history.results import compare_step
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import write_json


def actions(lines: list[NodeLine]) -> dict[str, str]:
    return {line.node: line.action for line in lines}


# --- without overrides


def test_a_replayed_step_is_bitwise_identical_and_what_follows_is_shared(
    finished_copy: Bench,
) -> None:
    before = contents(origin(finished_copy).path)
    result, again = replayed(origin(finished_copy), step=1)
    assert result.comparison.verdict == "bitwise identical"
    assert result.comparison.results == result.comparison.environment == ()
    assert again.result.executed == ("step-1", "report")
    assert {"data", "reserve", "plan", "step-2"} <= set(again.result.shared)
    assert again.reason("step-1") == "replayed"
    assert again.reason("step-2") == "shared from tiny"
    assert contents(origin(finished_copy).path) == before


def test_the_step_was_executed_and_not_linked(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), step=2)
    mine, theirs = again.run.model(2), origin(finished_copy).model(2)
    assert not (mine / "model.safetensors").samefile(theirs / "model.safetensors")
    assert (again.run.model(1) / "model.safetensors").samefile(
        origin(finished_copy).model(1) / "model.safetensors"
    ), "weights that are shared are not copied"


def test_a_shared_record_says_from_where(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), step=2)
    shared = again.record("step-1")["shared_from"]
    assert (shared["run"], shared["links"]) == ("tiny", "hard")
    assert "shared_from" not in again.record("step-2")
    stored = again.run.read_run().origin
    assert stored is not None
    assert (stored.kind, stored.run, stored.step) == ("replay", "tiny", 2)


def test_a_second_call_of_the_new_run_does_nothing(finished_copy: Bench) -> None:
    replayed(origin(finished_copy), step=2, name="again")
    assert finished_copy.run({"name": "again"}).result.executed == ()


def test_only_ends_the_chain_after_the_step(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), "training.beta=0.2", step=1, only=True)
    assert again.result.executed == ("step-1", "gamma-1", "report")
    assert not again.run.step(2).exists()
    assert again.result.report.is_file()


def test_a_replay_of_a_replay_shares_from_both(finished_copy: Bench) -> None:
    _, first = replayed(origin(finished_copy), "training.beta=0.2", step=2, name="first")
    _, second = replayed(first.run, "training.beta=0.3", step=2, name="second")
    assert "step-1" in second.result.shared
    assert second.record("step-2")["training"]["beta"] == 0.3
    shutil.rmtree(finished_copy.runs / "first")
    assert second.run.read_record("step-1") == second.record("step-1")
    assert finished_copy_is_whole(second)


def finished_copy_is_whole(run: Outcome) -> bool:
    return not any(run.run.damage(run.record(f"step-{step}")) for step in (1, 2))


# --- with overrides


@pytest.mark.parametrize(
    ("override", "field"),
    [("training.beta=0.3", "beta"), ("training.learning_rate=2e-3", "learning_rate")],
)
def test_another_setting_makes_no_scoring_forward_and_the_later_step_follows(
    finished_copy: Bench, override: str, field: str
) -> None:
    result, again = replayed(origin(finished_copy), override, step=1)
    assert result.comparison.verdict == "inputs differ"
    assert any(line.startswith(f"training.{field}") for line in result.comparison.inputs)
    first, second = again.record("step-1"), again.record("step-2")
    assert first["scored_rows"]["computed"] == 0
    assert first["training"][field] == float(override.partition("=")[2])
    assert second["training"][field] == again.run.read_run().config["training"][field]
    assert second["inputs"]["reference"] == first["outputs"]["model"]
    assert {"step-1", "step-2"} <= set(again.result.executed)


@pytest.mark.parametrize("objective", ["ipo_sum", "apo_zero"])
def test_another_objective_makes_no_scoring_forward(finished_copy: Bench, objective: str) -> None:
    result, again = replayed(origin(finished_copy), f"training.objective={objective}", step=2)
    assert f"training.objective: dpo -> {objective}" in result.comparison.inputs
    assert again.record("step-2")["scored_rows"]["computed"] == 0
    assert "step-1" in again.result.shared


def test_a_setting_of_the_second_step_leaves_the_first_shared(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), "training.beta=0.3", step=2)
    assert "step-1" in again.result.shared
    assert again.record("step-2")["scored_rows"]["computed"] == 0
    assert [s["beta"] for s in again.run.read_run().config["steps"]] == [None, 0.3]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.limit=30", r"data: data\.limit: 40 -> 30"),
        ("partition.strategy=random", "plan: "),
        ("steps.0.beta=0.5", r"step-1: training\.beta: 0\.1 -> 0\.5"),
        ("launch.threads=2", r"step-1: arithmetic\.threads: 1 -> 2"),
    ],
)
def test_what_would_change_an_earlier_step_is_refused_and_leaves_no_run(
    finished_copy: Bench, override: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"came before step 2 .*{named}"):
        replayed(origin(finished_copy), override, step=2, name="refused")
    assert not (finished_copy.runs / "refused").exists()


def test_other_trackers_and_probes_leave_the_steps_alone(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), "probe.max_pairs=5", step=2)
    assert "step-1" in again.result.shared
    assert (
        again.record("step-2")["outputs"] == origin(finished_copy).read_record("step-2")["outputs"]
    )  # type: ignore[index]


# --- the dry run


def test_a_dry_run_tells_of_every_node_what_would_become_of_it(finished_copy: Bench) -> None:
    before = contents(finished_copy.folder)
    lines = look(plan_replay(origin(finished_copy), step=1))
    found = actions(lines)
    assert [found[n] for n in ("data", "tokens", "reserve", "plan")] == ["REUSE"] * 4
    assert (found["step-1"], found["step-2"]) == ("RUN", "RUN IF")
    assert contents(finished_copy.folder) == before


def test_a_dry_run_names_the_field_with_its_old_and_new_value(finished_copy: Bench) -> None:
    overrides = ("training.beta=0.2", "steps.1.learning_rate=0.01")
    lines = look(plan_replay(origin(finished_copy), step=1, overrides=overrides))
    reasons = {line.node: line.reason for line in lines if line.action == "RUN"}
    assert reasons["step-1"] == "replayed with training.beta: 0.1 -> 0.2"
    assert reasons["step-2"] == "training.learning_rate: 0.001 -> 0.01"
    replay = plan_replay(origin(finished_copy), step=2, overrides=("data.limit=30",))
    lines = look(replay)
    with pytest.raises(ConfigError, match="came before step 2"):
        check(replay, lines)


def test_a_dry_run_tells_of_a_file_of_the_origin_that_is_damaged(finished_copy: Bench) -> None:
    flip(origin(finished_copy).model(1) / "model.safetensors")
    line = next(
        li for li in look(plan_replay(origin(finished_copy), step=2)) if li.node == "step-1"
    )
    assert line.action == "RUN"
    assert "step-1/model/model.safetensors was changed" in line.reason
    assert not line.is_changed


# --- the origin's bytes


def test_what_is_damaged_in_the_origin_is_made_again_in_the_new_run(
    finished: Outcome, finished_copy: Bench
) -> None:
    weights = origin(finished_copy).model(1) / "model.safetensors"
    flip(weights)
    damaged = weights.read_bytes()
    _, again = replayed(origin(finished_copy), step=2)
    assert {"step-1", "step-2"} <= set(again.result.executed)
    assert again.record("step-2")["outputs"] == finished.record("step-2")["outputs"]
    assert weights.read_bytes() == damaged


def test_a_step_that_is_done_again_in_the_new_run_leaves_the_origins_files(
    finished: Outcome, finished_copy: Bench
) -> None:
    """Both have one metrics.jsonl, which a step writes line by line where it is."""
    there = origin(finished_copy)
    _, again = replayed(there, step=2, name="again")
    before = contents(there.path)
    assert (again.run.step(1) / "metrics.jsonl").stat().st_nlink > 1
    again.run.record_path("step-1").unlink()
    there.record_path("step-1").rename(there.path / "hidden.json")
    redone = finished_copy.run({"name": "again"})
    (there.path / "hidden.json").rename(there.record_path("step-1"))
    assert "step-1" in redone.result.executed
    assert contents(there.path) == before
    assert redone.record("step-1")["outputs"] == finished.record("step-1")["outputs"]


def test_the_new_run_is_whole_without_its_origin(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), step=2, name="again")
    shutil.rmtree(origin(finished_copy).path)
    assert finished_copy_is_whole(again)
    later = finished_copy.run({"name": "again"})
    assert later.result.executed == ()
    assert any("origin tiny" in e.get("message", "") for e in later.events)


def test_where_there_are_no_hard_links_the_files_are_referred_to(
    finished_copy: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    _, again = replayed(origin(finished_copy), step=2, name="again")
    assert (again.run.model(1) / "model.safetensors").is_symlink()
    assert again.record("step-1")["shared_from"]["links"] == "symbolic"
    assert finished_copy_is_whole(again)
    shutil.rmtree(origin(finished_copy).path)
    assert any("it was a link to" in f for f in again.run.damage(again.record("step-1")))


# --- what is refused


def test_a_step_that_was_never_done_cannot_be_replayed(finished_copy: Bench) -> None:
    with pytest.raises(UserError, match=r"no complete step 3 to replay \(complete: 1, 2\)"):
        plan_replay(origin(finished_copy), step=3)


def test_a_name_that_is_taken_is_refused(finished_copy: Bench) -> None:
    with pytest.raises(RunExistsError, match="tiny exists and is another run"):
        plan_replay(origin(finished_copy), step=1, name="tiny")
    replayed(origin(finished_copy), step=2, name="again")
    with pytest.raises(RunExistsError, match="made step 2 already"):
        plan_replay(origin(finished_copy), step=2, name="again")


def test_without_a_name_each_replay_gets_one_of_its_own(finished_copy: Bench) -> None:
    first = plan_replay(origin(finished_copy), step=2).config.name
    (finished_copy.runs / first).mkdir()
    second = plan_replay(origin(finished_copy), step=2).config.name
    assert (first, second) == ("tiny-replay-2", "tiny-replay-2-2")


def test_a_base_model_that_has_changed_is_refused_with_its_digests(
    finished_copy: Bench, finished: Outcome
) -> None:
    base = finished_copy.folder / "base"
    shutil.copytree(finished.run.read_run().config["model"]["name_or_path"], base)
    flip(base / "model.safetensors")
    was = finished.run.read_run().inputs["model"]
    with pytest.raises(ModelError, match=f"has changed since run tiny was made.* not {was}"):
        replayed(origin(finished_copy), f"model.name_or_path={base}", step=1)


def test_data_files_that_are_gone_do_not_matter(finished_copy: Bench, finished: Outcome) -> None:
    data = finished_copy.folder / "gone.jsonl"
    override = f"data.sources.questions.path={data}"
    result, _ = replayed(origin(finished_copy), override, step=2)
    assert result.comparison.verdict == "bitwise identical"


# --- the comparison


def test_results_that_differ_are_named_with_the_environment(
    finished_copy: Bench, finished: Outcome
) -> None:
    other = finished_copy.copy_to(finished_copy.folder / "other")
    run = RunFolder(other.runs / "tiny")
    flip(run.model(2) / "model.safetensors")
    record = finished.record("step-2")
    record["outputs"] = {"model": "0" * 64}
    record["environment"] = record["environment"] | {"threads": 4}
    run.publish_record("step-2", record)
    metrics = run.step(2) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": 0.', '"loss": 1.', 1))
    gamma = finished.json("step-2/gamma.json")
    write_json(run.step(2) / "gamma.json", [e | {"mean": e["mean"] + 1} for e in gamma])
    found = compare_step(finished.run, run, 2)
    assert found.verdict == "same inputs, results differ"
    assert found.environment == ("threads: 1 -> 4",)
    assert found.results[0].startswith("weights digest: ")
    assert ", by at most " in found.results[0]
    assert found.results[1].startswith(
        "loss curve: from optimizer step 1 on, the loss by at most 1"
    )
    (entry,) = [e for e in gamma if (e["model"], e["probe"]) == ("M_2", "D_1")]
    mean, bounds = entry["mean"], f"[{entry['mean_low']:.3g}, {entry['mean_high']:.3g}]"
    assert found.results[2] == (
        f"gamma of M_2 on D_1: mean {mean:.4g} {bounds} -> {mean + 1:.4g} {bounds} (+1)"
    )
    assert not any(re.search(r"\d\.\d{6}", line) for line in found.results)
