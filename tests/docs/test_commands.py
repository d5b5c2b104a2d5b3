"""Commands in README and the pages run, and print what the pages say.

Every command has to exist with its options. Pages of one tiny run are executed from top to bottom,
in the order of a reader. What is executed elsewhere is named with the test that does it.
"""

import io
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from bench import Bench, DemoFiles
from command_line import Called, Sdpo
from documented import ROOT, Documented, documented, inline_commands
from histories import flip

from docs.site.commands import page as command_page

ELSEWHERE = {
    "sdpo run demo": "sdpo/inputs/test_demo.py",
    "sdpo check demo": "flows/commands/test_recipes.py",
    "sdpo run recipe.yaml --prefect": "flows/test_flow.py",
    "sdpo retrain chat --prompts requests.jsonl --generate judge.rule=asks_back --generate n=8": (
        "sdpo/promotion/test_retraining_rounds.py"
    ),
    "sdpo retrain chat --prompts requests.jsonl": "sdpo/promotion/test_retraining_rounds.py",
}
"""Commands that take long, and the tests that execute what they do."""


def helps() -> dict[str, str]:
    """The help of each command by its words."""
    found = re.findall(r"^## (sdpo[^\n]*)\n\n```\n(.*?)^```", command_page(), re.S | re.M)
    return dict(found)


def test_every_command_of_every_page_exists_with_its_options() -> None:
    within_sentences = [
        command for command in inline_commands() if re.match(r"sdpo [a-z]", command.text)
    ]
    helped, commands = helps(), [*documented(), *within_sentences]
    assert len(commands) > 120
    for command in commands:
        words = ["sdpo", *command.words]
        name = " ".join(words[:3]) if " ".join(words[:3]) in helped else " ".join(words[:2])
        assert name in helped, command
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{re.escape(word.partition('=')[0])}\b", helped[name]), command


def test_the_tests_that_execute_the_others_are_there() -> None:
    for test in ELSEWHERE.values():
        assert (ROOT / "tests" / test).is_file()


# troubleshooting and migration: each transcript is executed, and says what is printed

ROWS = [
    {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"No {i}."} for i in range(40)
]
NEEDS = {"launch.device=cuda": torch.cuda.is_available(), "--suite": bool(find_spec("lm_eval"))}
"""What these commands lack where the page was made, and whether it is there."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, demo_files: DemoFiles) -> Path:
    """The folder that the pages speak of: a recipe, its data, and files with mistakes."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "data").mkdir()
    as_lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "data" / "first.jsonl").write_text(as_lines)
    others = [{"q": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in ROWS]
    (folder / "data" / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in others))
    (folder / "data" / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b"\n')
    recipe = {
        "model": {"name_or_path": str(demo_files.model)},
        "data": {"sources": [{"name": "first", "path": "data/first.jsonl"}]},
        "launch": {"device": "cpu", "threads": 1},
        "probe": {"bootstrap_resamples": 100},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def plain(text: str, folder: Path) -> str:
    """What was printed, with the page's folder, and digests as `#`."""
    text = " ".join(text.replace(str(folder), "/home/me").split())
    return re.sub(r"\b[0-9a-f]{16}\b", "#", text)


def holds(command: Documented, called: Called, folder: Path) -> bool:
    """Whether a page says of a command what it printed, in order; `...` stands for anything."""
    parts = plain("\n".join(command.printed), folder).split(" ... ")
    return all(part in plain(called.told, folder) for part in parts)


def test_transcripts_of_mistakes_are_what_is_printed(
    sdpo: Sdpo, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    made = sdpo("run", "recipe.yaml", "--name", "demo")
    assert made.code == 0, made.told
    executed = 0
    for command in documented("troubleshooting", "migrate"):
        if command.text == "sdpo verify demo":
            flip(desk / "runs" / "demo" / "step-1" / "model" / "model.safetensors", at=5000)
        called = sdpo(*command.words)
        there = [is_there for word, is_there in NEEDS.items() if word in command.text]
        assert any(there) or holds(command, called, desk), (str(command), called.told)
        executed += 1
    assert executed > 18


# quickstart, replay, retraining: one finished run, by the name that it has here


def here(word: str) -> str:
    """A word of a command with the names of this place."""
    return re.sub(r"^(NAME|demo)(?=$|-)", "tiny", word)


def execute(sdpo: Sdpo, command: Documented, *, code: int = 0) -> Called:
    called = sdpo(*map(here, command.words))
    assert called.code == code, (str(command), called.told)
    return called


def test_the_commands_of_the_quickstart_run(sdpo: Sdpo, at_place: Bench) -> None:
    done = set()
    for command in documented("quickstart"):
        if command.text in ELSEWHERE:
            continue
        execute(sdpo, command)
        done.add(command.words[0])
    assert done == {"check", "partition", "run", "status", "resume", "export", "schema"}
    assert sdpo("verify", "out/").code == 0
    assert (at_place.runs / "smoke" / "report.html").is_file()


REPLAYED = {
    "sdpo replay demo --step 1": "bitwise identical: weights, loss curve and gamma",
    "sdpo replay demo --step 1 --set training.beta=0.2 --dry-run": "training.beta: 0.1 -> 0.2",
    "sdpo replay demo --step 2 --set training.beta=0.2": "inputs differ training.beta: 0.1 -> 0.2",
    "sdpo verify demo": "run tiny is whole",
    "sdpo extend demo --source new.jsonl": "published M_3",
    "sdpo verify demo-extended-3": "step-3/model/model.safetensors was changed",
    "sdpo resume demo-extended-3": "published M_3",
    "sdpo diff demo demo-replay-2": "steps.1.beta – 0.2",
    "sdpo lineage moved-m2": "the folder holds this model: its digest is",
    "sdpo gc": "delete",
}


def test_the_commands_of_replay_run(
    sdpo: Sdpo, at_place: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(at_place.runs / "tiny" / "step-2" / "model", at_place.folder / "moved-m2")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))  # to `gc`, which asks
    commands = documented("replay")
    assert [command.text for command in commands] == list(REPLAYED)
    for command in commands:
        damaged = command.text == "sdpo verify demo-extended-3"
        if damaged:
            flip(at_place.runs / "tiny-extended-3" / "step-3" / "model" / "model.safetensors", 5000)
        called = execute(sdpo, command, code=1 if damaged else 0)
        assert REPLAYED[command.text] in called.told, (str(command), called.told)


@pytest.mark.slow  # tests/flows/test_retrain.py has what it does, step by step
def test_the_commands_of_retraining_run(sdpo: Sdpo, at_place: Bench) -> None:
    given = [each for each in documented("retraining") if each.text not in ELSEWHERE]
    commands = {command.text: command for command in given}
    promote, retrain, current, rollback, estimate = commands.values()
    execute(sdpo, promote)
    assert "too few to tell" in execute(sdpo, retrain, code=1).told
    assert "nothing new for chat" in execute(sdpo, retrain).told
    judged = sdpo(*estimate.words)  # so few pairs, so short a training: either may be better
    assert judged.code in (0, 1)
    assert "refused: " in judged.told or "promoted: " in judged.told, judged.told
    assert sdpo("promote", "tiny/step-1", "--name", "chat").code == 0
    before = sdpo("current", "chat").told
    execute(sdpo, rollback)
    assert execute(sdpo, current).told != before
