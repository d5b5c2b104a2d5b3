"""Write a model as GGUF, through llama.cpp's own converter, which is a program of the user's."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.commands.export import Form, export_model
from sdpo.config.precision import TorchName
from sdpo.errors import Fault, UserError

_TYPES: dict[TorchName, str] = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
"""The converter calls these precisions so (``--outtype``)."""
_MAGIC = b"GGUF"
_LINES = 5
_WHERE = "--converter path/to/llama.cpp/convert_hf_to_gguf.py"


def export_gguf(
    target: str,
    file: Path,
    *,
    converter: Path | None,
    step: int | None,
    form: Form,
    runs_dir: Path,
    console: Console,
) -> None:
    """Write the model of a run's step, adapters merged, to the new ``file`` as GGUF.

    Raises:
        UserError: no converter is named, there is none, or the file exists.
        Fault: the converter failed, or wrote something else.
    """
    if converter is None:
        raise UserError(f"--format gguf is written by llama.cpp's converter: name it, {_WHERE}")
    if not converter.is_file():
        raise UserError(f"--converter {converter}: no such file; name llama.cpp's: {_WHERE}")
    if form.adapter:
        raise UserError("--format gguf takes whole weights: leave out --adapter")
    if os.path.lexists(file):
        raise UserError(f"{file} exists already: name a new file")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    precision = form.precision()
    prefix = ".tmp-sdpo-gguf-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=file.parent) as scratch:
        model, made = Path(scratch) / "model", Path(scratch) / "model.gguf"
        whole = replace(form, dtype=precision)
        export_model(target, model, step=step, form=whole, runs_dir=runs_dir, console=console)
        _convert(converter, model, made, outtype=_TYPES[precision])
        os.rename(made, file)  # noqa: PTH104 - within one folder
    console.print(f"as GGUF: {escape(str(file))}", highlight=False, soft_wrap=True)


def _convert(converter: Path, model: Path, made: Path, *, outtype: str) -> None:
    # A script that says by which Python it runs (its environment has gguf) is run by that one.
    program = [str(converter.absolute())]
    if not os.access(converter, os.X_OK):
        program.insert(0, sys.executable)
    command = [*program, str(model), "--outfile", str(made), "--outtype", outtype]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--converter {converter} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-_LINES:])
        raise Fault(f"{converter} ended with {done.returncode}; its last words:\n{said}")
    start = b""
    if made.is_file():
        with made.open("rb") as file:
            start = file.read(len(_MAGIC))
    if start != _MAGIC:
        raise Fault(f"{converter} ended well and wrote no GGUF file")
