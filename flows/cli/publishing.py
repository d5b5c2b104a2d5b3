"""Define the commands of ``sdpo`` that hand a model on: export, push."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import RunsDir, Step, Target, out, runs_folder
from sdpo.errors import UserError

app = Application()


class Format(StrEnum):
    """Copies of a model are written in these formats."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"


@app.command()
def export(
    target: Target,
    folder: Annotated[Path, typer.Argument(help="New folder for the model; a new file, for GGUF.")],
    step: Step = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="float32, bfloat16 or float16; also fp32, bf16, fp16. By default bfloat16, and "
            "float32 for an adapter.",
        ),
    ] = "",
    runs_dir: RunsDir = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter alone, for peft, as it was published.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Weights, with the adapter merged: the default.")
    ] = False,
    original: Annotated[
        bool,
        typer.Option(
            "--original-base",
            help="Merge onto the base as it was before model.base_precision rounded it: another "
            "model, and how far it is from what was trained is measured.",
        ),
    ] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="`gguf` needs llama.cpp's converter.")
    ] = Format.SAFETENSORS,
    converter: Annotated[
        Path | None, typer.Option("--converter", help="llama.cpp's convert_hf_to_gguf.py.")
    ] = None,
) -> None:
    """Write a copy of a step's model in another precision, an adapter merged or by itself."""
    from flows.commands.export import Form, export_model

    form = Form(dtype=dtype, adapter=adapter, merge=merge, original=original)
    runs = runs_folder(runs_dir)
    if format_ is Format.GGUF:
        from flows.commands.gguf import export_gguf

        export_gguf(
            target, folder, converter=converter, step=step, form=form, runs_dir=runs, console=out
        )
        return
    if converter is not None:
        raise UserError("--converter has no effect without --format gguf: leave it out")
    export_model(target, folder, step=step, form=form, runs_dir=runs, console=out)


@app.command()
def push(
    target: Target,
    repo: Annotated[str, typer.Argument(help="Name on the hub, as ORG/NAME.")],
    step: Step = None,
    dtype: Annotated[str, typer.Option("--dtype", help="As of `sdpo export`.")] = "",
    runs_dir: RunsDir = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter alone, for peft.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Weights, with the adapter merged: the default.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may see it; else you alone.")
    ] = False,
    licence: Annotated[
        str, typer.Option("--license", help="The hub's name of the licence, as apache-2.0.")
    ] = "",
    base_model: Annotated[
        str, typer.Option("--base-model", help="Base model's name on the hub, if a folder is S.")
    ] = "",
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry-run", help="Write what would go to this new folder; send nothing."),
    ] = None,
) -> None:
    """Put a step's model on the Hugging Face hub, private, with a card of how it came to be."""
    from flows.commands.export import Form
    from flows.commands.push import Destination, push_model
    from sdpo.history.hub_card import HubFacts

    push_model(
        target,
        HubFacts(repo=repo, base_model=base_model, licence=licence),
        Destination(public=public, folder=dry_run),
        step=step,
        form=Form(dtype=dtype, adapter=adapter, merge=merge),
        runs_dir=runs_folder(runs_dir),
        console=out,
    )
