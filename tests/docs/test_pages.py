"""The how-to's: every command is executed, or it is said which test does and why not here.

One finished run stands for the run of a reader, one folder for the reader's. What takes minutes is
marked slow; what cannot run on a machine like this is checked as far as it can be.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from bench import Bench
from command_line import Called, Sdpo
from documented import (
    ROOT,
    Documented,
    documented,
    inline_commands,
    other_commands,
    yaml_blocks,
)
from hub_stand_in import TOKEN, hub_stand_in

from flows.recipes.presets import presets
from sdpo.config.load import make_config

HERE = "docs/test_pages.py"
COMMANDS = "docs/test_commands.py"
EXECUTED = {
    "README": ("sdpo/inputs/test_demo.py", "flows/commands/test_recipes.py"),
    "browser": ("e2e/test_desk.py",),
    "compare": (HERE,),
    "evaluation": (HERE,),
    "from-trl": (HERE,),
    "hardware": (HERE,),
    "migrate": (COMMANDS,),
    "nodes": (HERE, "sdpo/processes/nodes/test_two_nodes.py", "sdpo/processes/nodes/test_slurm.py"),
    "push": (HERE,),
    "quickstart": (COMMANDS,),
    "references": (HERE,),
    "remote": (HERE,),
    "replay": (COMMANDS,),
    "retraining": (COMMANDS,),
    "running": (HERE, "test_faults.py"),
    "tracking": (HERE,),
    "troubleshooting": (COMMANDS,),
}
"""Pages with commands, and the tests that execute all of them."""
OF_THE_HUB = {"results": "model and data are the hub's; benchmarks/test_science.py has its parts"}
"""Pages whose commands are compared with the command line's help alone, and why."""


def test_every_page_with_commands_is_executed_by_a_test() -> None:
    found = {Path(command.page).stem for command in documented()}
    assert found == EXECUTED.keys() | OF_THE_HUB.keys()
    for page, tests in EXECUTED.items():
        for test in tests:
            assert (ROOT / "tests" / test).is_file(), (page, test)


def execute(sdpo: Sdpo, command: Documented, *more: str, code: int = 0) -> Called:
    """Execute a command as a reader does; its output goes to the file that it names."""
    called = sdpo(*command.words, *more)
    assert called.code == code, (str(command), called.told)
    if command.target:
        Path(command.target).write_text(called.out, encoding="utf-8")
    return called


def only(page: str) -> list[Documented]:
    commands = documented(page)
    assert commands
    return commands


def test_the_commands_of_hardware_run(sdpo: Sdpo, at_place: Bench) -> None:
    for command in only("hardware"):
        assert " GiB" in execute(sdpo, command).told
    assert at_place.folder == Path.cwd()


def test_the_commands_of_references_run_and_print_what_the_page_says(
    sdpo: Sdpo, at_place: Bench
) -> None:
    (command,) = only("references")
    told = execute(sdpo, command, code=2).told
    assert " ".join(" ".join(command.printed).split()) in told
    assert at_place.runs.is_dir()


def test_the_commands_of_nodes_make_a_script_that_a_shell_takes(
    sdpo: Sdpo, at_place: Bench
) -> None:
    (command,) = (each for each in only("nodes") if each.words[0] == "slurm")
    assert command.text.endswith("| sbatch")
    script = execute(sdpo, command).out
    assert "#SBATCH --time=4:00:00" in script
    assert f"cd {at_place.folder}" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


SCRIPTS = {
    "train.py": """
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer
args = DPOConfig(output_dir="out", beta=0.2, num_train_epochs=1, bf16=False, max_length=160)
data = load_dataset("json", data_files="pairs.jsonl", split="train")
trainer = DPOTrainer(model="base", args=args, train_dataset=data)
""",
    "from-llama-factory": """
stage: dpo
model_name_or_path: base
dataset: pairs
dataset_dir: .
cutoff_len: 160
pref_beta: 0.2
""",
    "from-axolotl": """
base_model: base
rl: dpo
rl_beta: 0.2
learning_rate: 5e-7
sequence_len: 160
datasets: [{path: pairs.jsonl, type: chat_template.default}]
""",
}


def test_the_commands_of_migration_make_recipes_that_check_takes(
    sdpo: Sdpo, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    shutil.copytree(bench.recipe["model"]["name_or_path"], "base")
    shutil.copyfile(bench.recipe["data"]["sources"][0]["path"], "pairs.jsonl")
    Path("dataset_info.json").write_text('{"pairs": {"file_name": "pairs.jsonl", "ranking": true}}')
    Path("train.py").write_text(SCRIPTS["train.py"])
    here = ("--set", "launch.device=cpu", "--set", "data.sources.0.path=pairs.jsonl")
    for command in only("from-trl"):
        kind = command.words[0]
        if kind in SCRIPTS:
            Path("dpo.yaml").write_text(SCRIPTS[kind])
        if command.target:
            execute(sdpo, command)
            assert make_config(yaml.safe_load(Path("recipe.yaml").read_text())).training.beta == 0.2
        else:
            assert "ready" in execute(sdpo, command, *here, "--limit", "30").told


def test_the_commands_of_evaluation_run_and_print_the_page_s_table(
    sdpo: Sdpo, at_place: Bench
) -> None:
    (command,) = only("evaluation")
    shutil.copytree(at_place.runs / "tiny", at_place.runs / "my-run", dirs_exist_ok=True)
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\{\"prompt\": .*$", page, re.MULTILINE)
    assert len(rows) == 2
    Path("prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    told = execute(sdpo, command, "--set", "evaluation.win_rate.max_new_tokens=8").told
    for said in ("on answers to prompts.jsonl (", "Length-controlled", "Orders agree"):
        assert said in told
        assert any(said in line for line in command.printed)


@pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")  # huggingface_hub 2.4
def test_the_commands_of_push_run(
    sdpo: Sdpo, at_place: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, dry_run, export = only("push")
    shutil.copytree(at_place.runs / "tiny", at_place.runs / "my-run", dirs_exist_ok=True)
    with hub_stand_in() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        for name, value in (("OFFLINE", False), ("DISABLE_XET", True)):
            monkeypatch.setattr(huggingface_hub.constants, f"HF_HUB_{name}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        mine = push.text.replace("my-org", "mine")  # where the stand-in's token may write
        execute(sdpo, Documented(push.page, mine))
        assert hub.repositories["mine/my-model"].private
    execute(sdpo, dry_run)
    assert (at_place.folder / "would-go" / "model.safetensors").is_file()
    converter = Path(export.words[export.words.index("--converter") + 1])
    converter.parent.mkdir()
    converter.write_text(
        "import pathlib, sys\n"
        "pathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_bytes(b'GGUF' + bytes(8))\n"
    )
    execute(sdpo, export)
    assert (at_place.folder / "my-run.gguf").is_file()


def test_the_commands_of_remote_run_over_a_store_in_a_folder(
    sdpo: Sdpo, at_place: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"file://{tmp_path}/store"
    at_place.write({"store": {"remote": store}}, name="recipe.yaml")
    for command in only("remote"):
        if command.words[0] in ("resume", "pull"):  # on another machine
            other = tmp_path / command.words[0]
            other.mkdir()
            monkeypatch.chdir(other)
        text = command.text.replace("s3://bucket/prefix", store)
        text = re.sub(r"\bNAME\b", "tiny", text)
        more = ["--runs-dir", "runs"] if command.words[0] in ("resume", "pull", "verify") else []
        called = execute(sdpo, Documented(command.page, text), *more)
        if "--deep" in text:
            assert "downloaded and hashed" in called.told
    assert (tmp_path / "pull" / "runs" / "tiny" / "report.html").is_file()
    at_place.write(name="recipe.yaml")


def test_the_commands_of_tracking_run(sdpo: Sdpo, at_place: Bench) -> None:
    for command in only("tracking"):
        execute(sdpo, command)
        assert list((at_place.runs / "tiny" / "tracking" / "sdpo").glob("events.out.tfevents.*"))
    assert not (at_place.runs / "tiny" / "tracking" / "sdpo" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_running_stop_go_on_and_keep_out(
    sdpo: Sdpo, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's Ctrl-C, a second call, and what that prints; a full disk is another test's."""
    monkeypatch.chdir(bench.folder)
    many = {"training": {"epochs": 100, "batch_size": 2}}
    bench.write({**many, "name": "two"}, name="two.yaml")
    stopped, resumed, beside, _ = only("running")
    command = [sys.executable, "-P", "-c", "from flows.cli.app import main; main()", *stopped.words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    first = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
    metrics = bench.runs / "two" / "step-1" / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < 20:
        time.sleep(0.1)
        assert first.poll() is None
    told = sdpo(*beside.words).told
    assert re.search(r"error: run two is in use by process \d+ on host .*: wait for it", told), told
    first.send_signal(signal.SIGINT)
    printed, _ = first.communicate(timeout=60)
    assert first.returncode == 130, printed
    pattern = r"step-1 saved at optimizer step (\d+) of \d+"
    (saved,) = re.findall(pattern, printed)
    assert "interrupted: what was complete stands; go on with: sdpo resume two" in printed
    told = execute(sdpo, resumed).told
    assert "run two stopped before its end, no step is complete: going on" in told
    assert f"step-1 goes on after optimizer step {saved} of" in told


FEWER = {"--seeds 3": "--seeds 2", "--trials 20": "--trials 2", "NAME": "tiny"}
"""What a page asks for, and what is enough to see that the command does it."""


def smaller(command: Documented) -> Documented:
    text = command.text
    for much, little in FEWER.items():
        text = text.replace(much, little)
    return Documented(command.page, text)


def lacks_optuna(command: Documented) -> bool:
    return "--trials" in command.text and importlib.util.find_spec("optuna") is None


def test_the_commands_of_compare_say_what_they_would_take(sdpo: Sdpo, at_place: Bench) -> None:
    for command in map(smaller, only("compare")):
        dry_run = [] if "--dry-run" in command.text else ["--dry-run"]
        missing = lacks_optuna(command)
        told = execute(sdpo, command, *dry_run, code=2 if missing else 0).told
        assert ("optuna" if missing else "Nothing was trained") in told
    assert not list(at_place.folder.glob("runs/*compare*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_compare_run(sdpo: Sdpo, at_place: Bench) -> None:
    for number, command in enumerate(map(smaller, only("compare"))):
        if not lacks_optuna(command):
            execute(sdpo, command, *([] if "--dry-run" in command.text else [f"--name=n{number}"]))
    assert at_place.runs.is_dir()


# --- what stands within sentences, recipes in pieces, and other programs


def test_programs_within_sentences_are_there() -> None:
    found = [command for command in inline_commands() if not command.text.startswith("sdpo")]
    assert len(found) > 10
    for command in found:
        check_program(command)


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def check_program(command: Documented) -> None:
    """Check that a target of ``make`` is there, or a benchmark with its options."""
    words = command.text.split()
    if words[0] == "make":
        assert words[1] in make_targets(), command
        return
    program = ROOT / (words[2].replace(".", "/"))
    source = program.with_suffix(".py") if program.with_suffix(".py").is_file() else None
    text = (source or program / "__main__.py").read_text(encoding="utf-8")
    text += "".join(p.read_text(encoding="utf-8") for p in program.glob("*.py"))
    for word in words:
        field = word[2:].replace("-", "_")  # options may be made from the names of settings
        is_known = f'"{word}"' in text or f'"{field}"' in text
        assert not word.startswith("--") or is_known, (words, word)


NOT_HERE = {
    "docker": "there is no Docker engine; tests/docker checks files, copied paths and entry points",
    "kubectl": "there is no cluster; tests/docker checks the manifests by the schemas of its API",
    "hf": "it asks for a token; tests/flows/commands/test_push.py has one",
    "pip": "it would install; `make release-check` installs the wheel",
    "make": "they install or take minutes; CI calls them",
    "python": "they measure for minutes; tests/benchmarks calls what they are made of",
    "cp": "", "mkdir": "", "printf": "", "openssl": "",
}  # fmt: skip
"""Programs that pages call, and why of these commands only files and options are checked;
those without a reason only write files."""


def test_other_programs_are_called_with_files_and_targets_that_are_there() -> None:
    found = other_commands()
    assert len(found) > 25
    for command in found:
        words = command.text.split()
        assert words[0] in NOT_HERE, command
        if words[0] in ("make", "python"):
            check_program(command)
        for path in re.findall(r"(?<![\w./-])(?:docker/[\w./-]+|constraints\.txt)", command.text):
            made = path.startswith("docker/secrets") or path == "docker/.env"
            assert made or (ROOT / path).exists(), command


PLACES: dict[str, Any] = {
    "model": {"name_or_path": "base"},
    "data": {"sources": [{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "b.jsonl"}]},
}


@pytest.mark.parametrize("number", range(len(yaml_blocks())))
def test_recipes_on_the_pages_are_accepted(number: int) -> None:
    page, text = yaml_blocks()[number]
    values = yaml.safe_load(text)
    assert isinstance(values, dict), page
    if base := values.pop("extends", ""):
        assert base in {preset.name for preset in presets()}
    if "generate" in values:  # it is of a source
        answered = {"prompts_of": "a", "judge": {"rule": "on_topic"}, **values["generate"]}
        first, _ = PLACES["data"]["sources"]
        values = {"data": {"sources": [first, {"name": "round", "generate": answered}]}}
    make_config({**PLACES, **values})
