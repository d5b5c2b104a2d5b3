"""A model becomes GGUF through a converter of the user's, or it is said what is missing.

The converter here is a program of its own that is called as llama.cpp's is: it reads the folder
that it is given, and writes the names of the tensors that it found.
"""

import struct
import sys
from pathlib import Path

import pytest
from bench import Bench, Outcome
from command_line import Sdpo
from safetensors import safe_open

CONVERTER = """
import argparse, pathlib, struct
from safetensors import safe_open
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16"])
given = parser.parse_args()
with safe_open(given.model / "model.safetensors", "np") as file:
    names = " ".join(sorted(file.keys()))
assert (given.model / "tokenizer.json").is_file()
text = f"{given.outtype} {names}".encode()
given.outfile.write_bytes(b"GGUF" + struct.pack("<I", 3) + text)
"""


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    path = tmp_path / "convert_hf_to_gguf.py"
    path.write_text(CONVERTER)
    return path


@pytest.mark.parametrize(("dtype", "outtype"), [("", b"bf16"), ("fp16", b"f16")])
def test_the_converter_gets_the_weights_in_the_precision_that_is_asked_for(
    finished: Outcome, sdpo: Sdpo, tmp_path: Path, converter: Path, dtype: str, outtype: bytes
) -> None:
    file = tmp_path / "tiny.gguf"
    if dtype:  # a script that is run as what its first line says
        converter.write_text(f"#!{sys.executable}{CONVERTER}")
        converter.chmod(0o755)
    runs = ("--runs-dir", finished.folder.parent)
    words = ("--format", "gguf", "--converter", converter, "--dtype", dtype, *runs)
    told = sdpo("export", "tiny", file, *words)
    assert told.code == 0, told.told
    content = file.read_bytes()
    assert content[:8] == b"GGUF" + struct.pack("<I", 3)
    with safe_open(finished.run.model(2) / "model.safetensors", "np") as weights:
        names = sorted(name.encode() for name in weights.keys())  # noqa: SIM118 - no mapping
    assert content[8:].split() == [outtype, *names]
    assert {path.name for path in tmp_path.iterdir()} == {file.name, converter.name}
    again = sdpo("export", "tiny", file, *words)
    assert (again.code, "exists already: name a new file" in again.told) == (2, True)
    assert file.read_bytes() == content


def test_what_is_missing_is_said(
    finished_bench: Bench, finished: Outcome, sdpo: Sdpo, tmp_path: Path, converter: Path
) -> None:
    file, runs = tmp_path / "tiny.gguf", ("--runs-dir", finished.folder.parent)
    gguf = ("--format", "gguf", *runs)
    for words, message in (
        (gguf, "name it, --converter path/to/llama.cpp/convert_hf_to_gguf.py"),
        ((*gguf, "--converter", tmp_path / "none.py"), "no such file"),
        ((*gguf, "--converter", converter, "--adapter"), "leave out --adapter"),
        (("--converter", converter, *runs), "no effect without --format gguf"),
        (("--format", "ggml", *runs), "ggml"),
    ):
        told = sdpo("export", "tiny", file, *words)
        assert (told.code, message in told.told) == (2, True), told.told
        assert "Traceback" not in told.told
    assert not file.exists()
    assert finished_bench.runs.is_dir()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("print('nothing to do')", "ended well and wrote no GGUF file"),
    ],
)
def test_a_converter_that_fails_is_heard(
    finished: Outcome, sdpo: Sdpo, tmp_path: Path, converter: Path, script: str, message: str
) -> None:
    converter.write_text(script)
    file, runs = tmp_path / "tiny.gguf", ("--runs-dir", finished.folder.parent)
    told = sdpo("export", "tiny", file, "--format", "gguf", "--converter", converter, *runs)
    assert (told.code, message in told.told) == (1, True), told.told
    assert {path.name for path in tmp_path.iterdir()} == {converter.name}
