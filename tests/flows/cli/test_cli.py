"""The command line: what each command prints, writes and returns."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bench import Bench, Outcome
from command_line import Sdpo
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.show.console import table
from sdpo import __version__
from sdpo.store.run_folder import RunFolder

COMMANDS = ("run", "check", "partition", "export", "status", "report", "schema")


def plan_of(path: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan


# --- run


def test_run_prints_the_tables_and_where_the_report_is(bench: Bench, sdpo: Sdpo) -> None:
    called = sdpo("run", bench.write())
    assert called.code == 0, called.told
    for node in ("data", "tokens", "reserve", "plan", "step-1", "step-2"):
        assert f"▶ {node}" in called.out
    assert "Partitions" in called.out
    assert "questions 36" in called.out
    assert re.search(r"^ 2 +DPO, β 0.1 +M_1 +M_1 +36 ", called.out, re.MULTILINE), (
        "step 2's reference and target are M_1"
    )
    assert "Change from S" in called.told
    assert re.search(r"Small probes: .* reserve of questions \(4 pairs\)", called.told)
    assert f"report: {bench.runs / 'tiny' / 'report.html'}" in called.out
    assert called.err == ""


def test_a_second_identical_run_does_nothing_and_says_so(finished_copy: Bench, sdpo: Sdpo) -> None:
    called = sdpo("run", finished_copy.write())
    assert called.code == 0
    assert "run tiny is complete: nothing to do" in called.out
    assert "▶" not in called.out


def test_a_changed_recipe_under_the_same_name_is_refused(finished_copy: Bench, sdpo: Sdpo) -> None:
    called = sdpo("run", finished_copy.write(), "--set", "training.beta=0.2")
    assert called.code == 2
    assert "run tiny exists and was made from something else" in called.err
    assert (
        "training.beta: nothing -> 0.2" in called.err or "training.beta: 0.1 -> 0.2" in called.err
    )


def test_settings_name_limit_and_folder_come_from_the_command_line(
    bench: Bench, tmp_path: Path, sdpo: Sdpo
) -> None:
    arguments = (
        *(bench.write(), "--name", "smoke", "--limit", 20, "--runs-dir", tmp_path / "other"),
        *("--set", "training.max_steps=1", "--set", "data.sources.requests.max_pairs=15"),
    )
    run = RunFolder(tmp_path / "other" / "smoke")
    assert sdpo("partition", *arguments).code == 0
    planned = plan_of(run.plan_file)
    called = sdpo("run", *arguments)
    assert called.code == 0, called.told
    assert plan_of(run.plan_file) == planned, "a name that was planned can be run"
    config = run.read_run().config
    assert config["name"] == "smoke"
    assert config["data"]["limit"] == 20
    pairs = pq.read_table(run.pairs)["source"].to_pylist()
    assert (pairs.count("questions"), pairs.count("requests")) == (20, 15)
    assert not bench.runs.exists()


def test_a_recipe_without_a_name_is_called_as_its_file(bench: Bench, sdpo: Sdpo) -> None:
    values = bench.values()
    del values["name"]
    recipe = bench.folder / "from_file.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert sdpo("partition", recipe).code == 0
    assert (bench.runs / "from_file" / "plan.json").is_file()


# --- check


def test_check_shows_what_a_person_should_see_before_training(bench: Bench, sdpo: Sdpo) -> None:
    called = sdpo("check", bench.write(), "--set", "data.max_length=32")
    assert called.code == 0, called.told
    assert "questions" in called.out
    assert "chat: " in called.out
    assert re.search(r"<\|assistant\|>│\w", called.out), "where the prompt ends"
    assert re.search(r"chosen: \d+ \+ \d+ tokens scored", called.out)
    assert re.search(r"last tokens: .*<\|end\|>", called.told)
    assert re.search(r"sequence +\d+ +\d+ +32 ", called.out), "the longest sequence"
    assert re.search(r"truncated: [1-9][\d.]*% of the chosen", called.out)
    assert "optimizer steps" in called.out
    assert "Memory per device, estimated" in called.out
    assert re.search(r"weights \([\d,]+ parameters, fp32\)", called.out)
    assert not bench.runs.exists(), "looking leaves no run"


def test_check_says_that_a_run_of_this_name_was_made_from_something_else(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    recipe = finished_copy.write()
    called = sdpo("check", recipe)
    assert (called.code, "made from something else" in called.told) == (0, False)
    called = sdpo("check", recipe, "--set", "training.beta=0.5")
    assert called.code == 0
    assert "run tiny exists and was made from something else" in " ".join(called.told.split())
    assert "give this one another name" in " ".join(called.told.split())


# --- partition


def test_partition_writes_the_plan_with_lengths_in_tokens(bench: Bench, sdpo: Sdpo) -> None:
    called = sdpo("partition", bench.write())
    assert called.code == 0, called.told
    assert "tokens median" in called.told
    plan = plan_of(bench.runs / "tiny" / "plan.json")
    assert [step["sources"] for step in plan["steps"]] == [{"questions": 36}, {"requests": 36}]
    assert str(bench.runs / "tiny" / "plan.json") in called.told
    # The folder is a run's by its marker, and holds no run yet.
    assert {path.name for path in (bench.runs / "tiny").iterdir()} == {"plan.json", ".sdpo.json"}


def test_partition_knows_lengths_in_tokens_once_they_are_cached(
    finished: Outcome, finished_copy: Bench, sdpo: Sdpo
) -> None:
    called = sdpo("partition", finished_copy.write(), "--name", "later")
    assert called.code == 0, called.told
    assert "tokens median" in called.told
    plan = plan_of(finished_copy.runs / "later" / "plan.json")
    assert plan == finished.json("plan.json")


def test_partition_leaves_the_plan_of_a_run_alone(finished_copy: Bench, sdpo: Sdpo) -> None:
    before = (finished_copy.runs / "tiny/plan.json").read_bytes()
    arguments = ("--set", "partition.strategy=random", "--set", "partition.fractions=[0.5,0.5]")
    called = sdpo("partition", finished_copy.write(), *arguments)
    assert called.code == 0
    assert "run tiny keeps its own plan" in called.out
    assert (finished_copy.runs / "tiny/plan.json").read_bytes() == before
    out = finished_copy.folder / "elsewhere" / "plan.json"
    assert sdpo("partition", finished_copy.write(), *arguments, "--out", out).code == 0
    assert plan_of(out)["strategy"] == "random"


def test_partition_says_when_a_strategy_must_measure_first(bench: Bench, sdpo: Sdpo) -> None:
    called = sdpo("partition", bench.write({"partition": {"order": "easy_first"}}))
    assert called.code == 0
    assert "needs gamma of every pair under M_0, which must be measured first" in called.told
    assert not (bench.runs / "tiny").exists()


# --- export


def test_export_writes_a_copy_in_bfloat16_that_loads(
    finished: Outcome, finished_copy: Bench, sdpo: Sdpo
) -> None:
    out = finished_copy.folder / "exported"
    called = sdpo("export", "tiny", out, "--runs-dir", finished_copy.runs)
    assert called.code == 0, called.told
    assert "M_2 in bfloat16" in called.out
    with safe_open(out / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    policy = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    exact = AutoModelForCausalLM.from_pretrained(finished.run.model(2))
    for name, value in exact.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value.to(torch.bfloat16)), name
    AutoTokenizer.from_pretrained(out)
    assert (out / "lineage.json").is_file()


def test_export_of_one_step(finished_copy: Bench, sdpo: Sdpo) -> None:
    out = finished_copy.folder / "first"
    arguments = ("--step", 1, "--dtype", "float32", "--runs-dir", finished_copy.runs)
    assert "M_1 in float32" in sdpo("export", "tiny", out, *arguments).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "{here}"], "exists already"),
        (["tiny", "{here}/new", "--dtype", "int8"], "known are float32, bfloat16, float16"),
        (["tiny", "{here}/new", "--step", "7"], "no complete step 7; complete: 1, 2"),
        (["nope", "{here}/new"], "runs there: tiny"),
        (["tiny", "{here}/new", "--adapter"], "--adapter: M_2 of run tiny is weights"),
        (["tiny", "{here}/new", "--merge"], "--merge: M_2 of run tiny is weights"),
    ],
)
def test_export_refuses_what_it_cannot_do(
    finished: Outcome, tmp_path: Path, sdpo: Sdpo, arguments: list[str], message: str
) -> None:
    given = [argument.format(here=tmp_path) for argument in arguments]
    called = sdpo("export", *given, "--runs-dir", finished.folder.parent)
    assert called.code == 2
    assert message in called.told
    assert not (tmp_path / "new").exists()


# --- status, report, schema, version, help


def test_status_lists_the_runs_and_tells_of_one(finished: Outcome, sdpo: Sdpo) -> None:
    listed = sdpo("status", "--runs-dir", finished.folder.parent)
    assert listed.code == 0
    assert "tiny" in listed.out
    assert "2 of 2" in listed.out
    one = sdpo("status", "tiny", "--runs-dir", finished.folder.parent)
    assert one.code == 0
    assert "2 of 2 steps are complete" in one.out
    assert finished.record("step-2")["outputs"]["model"][:12] in one.out
    assert sdpo("status", finished.folder).out == one.out, "as shells complete it, by path"


def test_status_of_an_unfinished_run(finished_copy: Bench, sdpo: Sdpo) -> None:
    (finished_copy.runs / "tiny/step-2/record.json").unlink()
    assert "1 of 2 steps are complete" in sdpo("status", finished_copy.runs / "tiny").out


def test_status_where_there_are_no_runs(tmp_path: Path, sdpo: Sdpo) -> None:
    called = sdpo("status", "--runs-dir", tmp_path)
    assert (called.code, called.told) == (0, f"no runs in {tmp_path}")


def test_report_writes_the_report_anew(finished_copy: Bench, sdpo: Sdpo) -> None:
    path = finished_copy.runs / "tiny" / "report.html"
    path.write_text("old", encoding="utf-8")
    called = sdpo("report", "tiny", "--runs-dir", finished_copy.runs)
    assert called.code == 0
    assert str(path) in called.out
    assert "<html" in path.read_text(encoding="utf-8")


def test_schema_is_a_json_schema_of_the_recipe(sdpo: Sdpo) -> None:
    schema = json.loads(sdpo("schema").out)
    assert {"model", "data", "partition", "training", "launch", "store"} <= (
        schema["properties"].keys()
    )
    training = schema["$defs"]["TrainingConfig"]["properties"]
    assert training["learning_rate"]["default"] == 5e-7
    assert all(field["description"] for field in training.values())


def test_the_version_and_the_help_of_every_command(sdpo: Sdpo) -> None:
    assert sdpo("--version").out.strip() == __version__
    told = sdpo("--help").told
    assert all(command in told for command in COMMANDS)
    for command in COMMANDS:
        called = sdpo(command, "--help")
        assert called.code == 0
        assert "Usage: sdpo" in called.told


# --- mistakes in a call, and faults


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing"),
        (["rum"], "No such command 'rum'"),
        (["run", "x.yaml", "--limit", "many"], "--limit"),
        (["run", "x.yaml", "--seed", "1"], "No such option"),
        (["run", "x.yaml"], "no recipe at"),
        (["status", "nope"], "no run at"),
        (["status", "a/b"], "neither a run, nor a step of one"),
        (["report", "nope"], "no run at"),
    ],
)
def test_a_mistaken_call_is_told_in_one_message_and_exits_with_2(
    sdpo: Sdpo, arguments: list[str], message: str
) -> None:
    called = sdpo(*arguments)
    assert called.code == 2
    assert message in called.told
    assert called.err.count("error:") == 1
    assert "Traceback" not in called.told


def test_a_damaged_record_is_a_fault_and_exits_with_1(finished_copy: Bench, sdpo: Sdpo) -> None:
    record = finished_copy.runs / "tiny/step-1/record.json"
    record.write_text(record.read_text().replace("0.001", "0.002"), encoding="utf-8")
    called = sdpo("status", finished_copy.runs / "tiny")
    assert called.code == 1
    assert "record.json was changed after it was written" in called.err


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not here")
def test_a_run_in_use_is_refused(finished_copy: Bench, sdpo: Sdpo) -> None:
    holder = subprocess.Popen(
        ["flock", finished_copy.runs / "tiny/.lock", "sleep", "60"], start_new_session=True
    )
    try:
        time.sleep(0.3)
        called = sdpo("run", finished_copy.write())
    finally:
        os.killpg(holder.pid, signal.SIGTERM)
        holder.wait()
    assert called.code == 2
    assert "run tiny is in use by" in called.err


def test_tables_show_text_in_brackets_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=120).print(table([{"source": "[red]a[/]", "pairs": None}]))
    assert "[red]a[/]" in capsys.readouterr().out


def test_tables_are_not_cut_where_the_output_is_no_terminal(finished: Outcome) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, "-m", "flows.cli.app", "report", str(finished.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    command[3] = "status"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout


# --- interruption


def stages_of(run: Path) -> list[psutil.Process]:
    """Living processes whose command names something in the run."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"{run}/" in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(happened: Any, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def heed_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, and whatever they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_while_it_trains(recipe: str, run: Path, number: signal.Signals) -> None:
    """Call ``sdpo run`` as a person does, and end it when step 1 is under way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.app", "run", recipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - the test has no threads
    )
    metrics = run / "step-1" / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 3)
    assert len(stages_of(run)) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted: what was complete stands" in err
    assert "Traceback" not in out + err
    wait_until(lambda: not stages_of(run), seconds=5)
    assert not (run / "step-1" / "record.json").exists()


def test_after_ctrl_c_no_process_is_left_and_the_same_command_goes_on(
    bench: Bench, sdpo: Sdpo
) -> None:
    recipe = bench.write({"steps": [{"epochs": 8}, {"max_steps": 1}]})
    assert sdpo("check", recipe).code == 0  # the tokens are cached then: less to wait for
    interrupt_while_it_trains(recipe, bench.runs / "tiny", signal.SIGINT)
    again = sdpo("run", recipe)
    assert again.code == 0, again.told
    assert "✓ data is done" in again.out
    assert RunFolder(bench.runs / "tiny").complete_steps() == [1, 2]


def test_terminated_it_leaves_no_process(bench: Bench, sdpo: Sdpo) -> None:
    recipe = bench.write({"training": {"epochs": 100}})
    assert sdpo("check", recipe).code == 0
    interrupt_while_it_trains(recipe, bench.runs / "tiny", signal.SIGTERM)
