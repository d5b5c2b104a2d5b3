"""A round whose samples a server draws: started, asked, compared, killed, and gone in any case."""

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import model_server
import psutil
import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from processes import start

from sdpo.errors import ConfigError, Fault, ModelError, UserError
from sdpo.events import EventWriter
from sdpo.processes.judging_specs import GenerateSpec
from sdpo.processes.stage_results import GenerateResult
from sdpo.stages import generate
from sdpo.system.permissions import SERVE, SERVE_VARIABLES

N, PROMPTS, TOKENS = 3, 4, 6
SERVER = [sys.executable, model_server.__file__, "{model}", "--port", "{port}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    return Bench(tmp_path_factory.mktemp("served"), tiny_recipe)


def recipe(demo_files: DemoFiles, *options: str, name: str = "tiny") -> Values:
    generate = {
        "prompts_of": "requests",
        "per_round": PROMPTS,
        "n": N,
        "max_new_tokens": TOKENS,
        "unfinished": "keep",
        "judge": {"rule": "length"},
        "engine": "openai",
        "serve": [*SERVER, *options],
        "parallel": 2,
        "held_out": 0,
    }
    sources = [
        {"name": "questions", "path": str(demo_files.questions)},
        {"name": "requests", "path": str(demo_files.requests), "train": False},
        {"name": "round", "generate": generate},
    ]
    return {
        "name": name,
        "data": {"sources": sources},
        "training": {"max_steps": 2},
        "probe": {"completions": 0, "max_pairs": 8},
    }


@contextmanager
def permitted(changes: Values, **variables: str) -> Iterator[None]:
    command = changes["data"]["sources"][2]["generate"]["serve"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SERVE, shlex.join(command))
        for variable, value in variables.items():
            patch.setenv(variable, value)
        yield


def run(place: Bench, changes: Values, **variables: str) -> Outcome:
    with permitted(changes, **variables):
        return place.run(changes)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told") / "told.json"


@pytest.fixture(scope="module")
def made(place: Bench, demo_files: DemoFiles, told: Path) -> Outcome:
    changes = recipe(demo_files, "--helper", "--told", str(told))
    secrets = {"HF_TOKEN": "hf_secret", "SDPO_JUDGE_KEY": "key", "OF_THE_OWNER": "1"}
    return run(place, changes, **secrets, **{SERVE_VARIABLES: "OF_THE_OWNER"})


def rows(made: Outcome, name: str) -> list[Values]:
    found: list[Values] = pq.read_table(made.run.step(2) / f"{name}.parquet").to_pylist()
    return found


def test_the_server_is_named_and_compared_and_its_samples_are_not_repeatable(made: Outcome) -> None:
    outputs = made.record("generate-2")["outputs"]
    assert outputs["engine"] == "openai"
    served = outputs["served"]
    assert (served["name"], served["version"]) == ("model-server", "1.2.3")
    assert served["bitwise_repeatable"] is False
    assert served["prompts_as"] == "token ids"
    assert served["identity"] == "log-probs"
    assert served["compared_tokens"] > PROMPTS
    assert served["mean_difference_nats"] < 1e-4, "both are float32 on a CPU"
    assert {row["engine"] for row in rows(made, "samples")} == {
        "model-server 1.2.3, not bitwise repeatable"
    }


def test_served_samples_become_pairs_that_are_trained_on(made: Outcome) -> None:
    generated = rows(made, "generated")
    assert len(generated) == N * PROMPTS
    assert len({row["text"] for row in generated}) > PROMPTS, "every sample has its own seed"
    assert all(0 < len(row["token_ids"]) <= TOKENS for row in generated)
    texts = {row["text"] for row in generated}
    pairs = rows(made, "pairs")
    assert pairs
    assert {row[side][0]["content"] for row in pairs for side in ("chosen", "rejected")} <= texts
    assert made.record("step-2")["pairs"] == len(pairs)


def test_the_server_has_no_secret_and_what_the_owner_gives(made: Outcome, told: Path) -> None:
    del made
    names = set(json.loads(told.read_text(encoding="utf-8"))["names"])
    assert {"OF_THE_OWNER", "PATH", "HOME"} <= names
    assert not names & {"HF_TOKEN", "SDPO_JUDGE_KEY", "PYTHONPATH", SERVE}


def gone(told: Path, *, within_s: float = 20) -> bool:
    """Whether no process that a server told of runs any more."""
    pids = json.loads(told.read_text(encoding="utf-8"))["pids"]
    until = time.monotonic() + within_s
    while any(map(_runs, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_of_the_server_is_left_and_training_comes_after_it(
    made: Outcome, told: Path
) -> None:
    assert gone(told, within_s=0)
    assert made.json("step-2/record.json")
    assert not list(made.folder.glob(".tmp-*"))


def test_a_command_that_the_owner_has_not_permitted_is_refused(
    place: Bench, demo_files: DemoFiles
) -> None:
    changes = recipe(demo_files, name="refused")
    serve = changes["data"]["sources"][2]["generate"]["serve"]
    for given in ("", shlex.join(serve[:2]), shlex.join([*serve, "--helper"]), "'not closed"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SERVE, given)
            with pytest.raises(ConfigError, match=rf"has to permit the command.* {SERVE}"):
                place.run(changes)


class Stage:
    """The stage of the round that was made, run in this process with another server."""

    def __init__(self, made: Outcome, folder: Path, *options: str) -> None:
        spec = json.loads((made.run.path / "logs/generate-2.json").read_text(encoding="utf-8"))
        self.folder, self.told = folder, folder / "told.json"
        command = [*SERVER, "--told", str(self.told), *options]
        spec["serve"]["command"] = command
        spec |= {"so_far": str(folder / "log.jsonl"), "out": str(folder / "out.parquet")}
        self.spec: GenerateSpec = GenerateSpec.model_validate(spec)
        self.command = shlex.join(command)

    def run(self, events: EventWriter | None = None, **changes: object) -> GenerateResult:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SERVE, self.command)
            spec = self.spec.model_copy(update=changes)
            return generate.run(spec, events or EventWriter(None))

    def keys(self) -> list[str]:
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["key"] for line in lines]


def test_another_model_than_the_right_one_is_found(
    made: Outcome, demo_files: DemoFiles, tmp_path: Path
) -> None:
    stage = Stage(made, tmp_path, "--other", str(other_weights(demo_files.model, tmp_path)))
    with pytest.raises(ModelError, match=r"serves another model than it was started for: .*nats"):
        stage.run()
    assert not stage.keys()
    assert gone(stage.told, within_s=0)


def other_weights(model: Path, folder: Path) -> Path:
    """The same model with the weights of its last norm turned up: likelier tokens are likelier."""
    from safetensors.torch import load_file, save_file

    other = folder / "other"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return other


class Killer(EventWriter):
    """A listener that ends the server when the first prompt is done."""

    def __init__(self, told: Path) -> None:
        super().__init__(None)
        self.told = told

    def progress(self, phase: str, done: int, total: int, **_: str) -> None:
        if done:
            pid = json.loads(self.told.read_text(encoding="utf-8"))["pids"][0]
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_server_that_is_killed_ends_in_words_and_the_round_goes_on(
    made: Outcome, tmp_path: Path
) -> None:
    """This one tells no log-probs and takes text alone: its identity is weak."""
    stage = Stage(made, tmp_path, "--silent", "--text")
    with pytest.raises(Fault, match=r"server of the model is gone: signal 9.* run the same again"):
        stage.run(Killer(stage.told))
    assert gone(stage.told, within_s=0)
    kept = stage.keys()
    assert 0 < len(kept) < PROMPTS
    before = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    result = stage.run()
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8").startswith(before)
    assert len(stage.keys()) == result.prompts == PROMPTS
    assert result.served is not None
    assert (result.served.identity, result.served.prompts_as) == ("weak", "text")
    stage.told.unlink()
    assert stage.run().served == result.served, "which server it was is kept with the samples"
    assert not stage.told.exists(), "there was nothing left to serve for"
    assert pq.read_table(tmp_path / "out.parquet").num_rows == N * PROMPTS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_while_a_server_serves_leaves_no_process(
    made: Outcome, place: Bench, demo_files: DemoFiles, tmp_path: Path, number: signal.Signals
) -> None:
    """The deaf helper of the server is in a session of its own."""
    del made
    bench, told = place.copy_to(tmp_path), tmp_path / "told.json"
    changes = recipe(demo_files, "--helper", "--told", str(told), name="ended")
    changes["data"]["sources"][2]["generate"] |= {"n": 200, "max_new_tokens": 100}
    with permitted(changes):
        running = start("run", bench.write(changes), log=tmp_path / "log")
    try:
        running.until(lambda: bool(list(bench.runs.glob("ended/step-2/generating/*.jsonl"))))
        running.until(lambda: told.is_file() and bool(told.read_bytes()))
        running.process.send_signal(number)
        running.wait()
        assert gone(told)
    finally:
        running.kill_tree()


def test_what_may_be_spent_is_a_ceiling_and_the_round_goes_on_from_there(
    made: Outcome, tmp_path: Path
) -> None:
    stage = Stage(made, tmp_path)
    with pytest.raises(UserError, match=r"ceiling of tokens .* raise it to go on from there"):
        stage.run(serve=None, max_tokens_total=5)
    assert len(stage.keys()) == 1
    with pytest.raises(UserError, match=r"ceiling of time is reached.* run the same again"):
        stage.run(serve=None, max_minutes=1e-6)
    assert stage.run(serve=None).prompts == PROMPTS


def test_a_server_that_ends_at_once_is_told_of(made: Outcome, tmp_path: Path) -> None:
    stage = Stage(made, tmp_path, "--unheard-of")
    with pytest.raises(UserError, match="ended before it served: exit code 2"):
        stage.run()
