"""What many tests share: a tiny recipe over the demo's model and data, and a finished run of it."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # as in every process of the command line
    "SDPO_SHARE_DEVICE": "1",  # tests run beside each other; those of the lock turn it on
}

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import Bench, DemoFiles, Outcome, Values
from forked_stages import SERVER, forked_stages, server
from histories import origin
from hypothesis import settings
from no_waiting import wait_for_no_disk

from sdpo.history.target import Checkpoint
from sdpo.inputs import demo
from sdpo.inputs.demo.model import write_model
from sdpo.promotion.versions import promote

wait_for_no_disk()
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")


FEW = 300


def pytest_configure(config: pytest.Config) -> None:
    """Let the processes of one call share one server of stages: each would import for seconds."""
    if SERVER in os.environ or getattr(config.option, "numprocesses", None):
        os.environ.update(server())


def pytest_collection_finish() -> None:
    """Let no garbage be looked for among what was imported: it stays, and is two million objects.

    A full collection took half a second, and whoever frees a device's memory asks for one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def quick_stages() -> Iterator[None]:
    """``forked_stages`` for a whole test."""
    with forked_stages():
        yield


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """Made once, of each file the first rows (a chain reads all of them); tests only read them."""
    folder = tmp_path_factory.mktemp("demo")
    few = tmp_path_factory.mktemp("few")
    for name in ("questions", "requests", "dialogues"):
        rows = demo.materialise(f"demo:{name}", folder).read_text(encoding="utf-8").splitlines(True)
        (few / f"{name}.jsonl").write_text("".join(rows[:FEW]), encoding="utf-8")
    names = ("questions", "requests", "dialogues")
    model = demo.materialise("demo:tiny-llama", folder)
    return DemoFiles(model, *(few / f"{name}.jsonl" for name in names))


@pytest.fixture(scope="session")
def tiny_recipe(demo_files: DemoFiles) -> Values:
    """Two natural steps of about 36 pairs each, six optimizer steps each."""
    return {
        "name": "tiny",
        "model": {"name_or_path": str(demo_files.model)},
        "data": {
            "sources": [
                {"name": "questions", "path": str(demo_files.questions)},
                {"name": "requests", "path": str(demo_files.requests)},
            ],
            "limit": 40,
            "max_length": 160,
        },
        "training": {"learning_rate": 1e-3, "batch_size": 6},
        "launch": {"device": "cpu", "threads": 1},
        "probe": {"completions": 1, "completion_tokens": 4, "bootstrap_resamples": 100},
    }


@pytest.fixture(scope="session")
def foreign_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model's very weights with another vocabulary and template: another model."""
    folder = tmp_path_factory.mktemp("foreign")
    write_model(folder, [f"Where is {name}? I am glad to help." for name in "abcdefgh"] * 50)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = template.replace("bos_token -", "bos_token + 'Chat: ' -")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture
def bench(tmp_path: Path, tiny_recipe: Values) -> Bench:
    """A fresh place for runs of the tiny recipe."""
    return Bench(tmp_path, tiny_recipe)


@pytest.fixture(scope="session")
def finished_bench(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    """Where the finished run is."""
    return Bench(tmp_path_factory.mktemp("finished"), tiny_recipe)


@pytest.fixture(scope="session")
def finished(finished_bench: Bench) -> Outcome:
    """A finished run of the tiny recipe; tests only read it."""
    return finished_bench.run()


@pytest.fixture
def finished_copy(finished_bench: Bench, finished: Outcome, tmp_path: Path) -> Bench:
    """A copy of the finished run with its caches, to be changed."""
    assert finished.folder.is_dir()
    return finished_bench.copy_to(tmp_path)


@pytest.fixture
def promoted(finished_copy: Bench) -> Bench:
    """A copy of the finished run, whose model is in use."""
    promote(Checkpoint(origin(finished_copy)), runs_dir=finished_copy.runs)
    return finished_copy


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows, or raw text, to a file below the test's folder."""

    def write(rows: list[Values] | str, name: str = "pairs.jsonl") -> Path:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
