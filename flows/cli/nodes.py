"""Define the command ``sdpo node join``: be a node of a run that trains on several."""

from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import err

app = Application(help="Be a node of a run that trains on several machines.")


@app.callback()
def node() -> None:
    """Be a node of a run that trains on several machines."""


@app.command()
def join(
    rendezvous: Annotated[
        str,
        typer.Option(
            "--rendezvous",
            help="HOST:PORT of the run, its launch.rendezvous; else as MASTER_ADDR and MASTER_PORT "
            "say.",
        ),
    ] = "",
    patience: Annotated[
        float,
        typer.Option("--patience", min=0, help="Seconds to try while no run listens there yet."),
    ] = 600.0,
) -> None:
    """Train stages of the run that waits at a rendezvous, until it has ended.

    Exit code 0: it has; 1: nobody listens there; 2: this node is refused, with why.
    """
    from flows.commands.nodes import join_run

    def tell(message: str) -> None:
        err.print(message, highlight=False, markup=False, soft_wrap=True)

    raise typer.Exit(join_run(rendezvous, patience_s=patience, tell=tell))
