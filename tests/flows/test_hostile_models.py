"""Model folders that hold more than one model, or something that is none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench, DemoFiles
from command_line import Sdpo


def two_sets(model: Path, weights: Path) -> str:
    shutil.copyfile(weights, model / "shard.safetensors")
    mapped = {"weight_map": {"lm_head.weight": "shard.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(mapped))
    return "holds two sets of weights"


def an_adapter(model: Path, weights: Path) -> str:
    shutil.copyfile(weights, model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    return "holds weights and an adapter"


def a_redirection(model: Path, weights: Path) -> str:
    shutil.copyfile(weights, model / "other.safetensors")
    path = model / "config.json"
    config = json.loads(path.read_text()) | {"transformers_weights": "other.safetensors"}
    path.write_text(json.dumps(config))
    return "names other weights"


def a_link(model: Path, weights: Path) -> str:
    (model / "vocab.txt").symlink_to(weights)
    return "outside the model's folder"


def a_pipe(model: Path, _weights: Path) -> str:
    os.mkfifo(model / "tokenizer.pipe")
    return "neither a file nor a folder"


def a_dangling_link(model: Path, _weights: Path) -> str:
    (model / "generation_config.json").unlink()
    (model / "generation_config.json").symlink_to("nowhere")
    return "leads nowhere"


HOSTILE = [two_sets, an_adapter, a_redirection, a_link, a_pipe, a_dangling_link]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_folder_is_refused_before_anything_is_made(
    bench: Bench, demo_files: DemoFiles, sdpo: Sdpo, make: Callable[[Path, Path], str]
) -> None:
    model = bench.folder / "model"
    shutil.copytree(demo_files.model, model)
    said = make(model, demo_files.model / "model.safetensors")
    called = sdpo("run", bench.write({"model": {"name_or_path": str(model)}}))
    assert called.code == 2
    assert said in called.told
    assert "Traceback" not in called.told
    assert not (bench.runs / "tiny").exists()
    assert not list(bench.folder.glob("cache/logps/*"))


def test_check_lists_what_is_not_used(bench: Bench, demo_files: DemoFiles, sdpo: Sdpo) -> None:
    model = bench.folder / "model"
    shutil.copytree(demo_files.model, model)
    (model / "original").mkdir()
    (model / "pytorch_model.bin").write_bytes(b"never read")
    shutil.copyfile(model / "model.safetensors", model / "consolidated.safetensors")
    called = sdpo("check", bench.write({"model": {"name_or_path": str(model)}}))
    assert called.code == 0, called.told
    assert "not used: consolidated.safetensors, original/, pytorch_model.bin" in called.told
