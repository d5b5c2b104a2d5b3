"""Define the commands of ``sdpo server``: up, password, form, down, status."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import Name, Overrides, Recipe, configured, err, out

app = Application(help="A Prefect server, a worker and the deployments, at a desk.")
ServerFolder = Annotated[Path, typer.Option("--folder", help="Where the server keeps everything.")]


@app.command()
def up(
    port: Annotated[int, typer.Option("--port", help="Port of the UI.")] = 4200,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    folder: ServerFolder = Path(".sdpo-server"),
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A further name that the server is known by."),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask for no password; at a loopback address alone.")
    ] = False,
    reset_schedules: Annotated[
        bool,
        typer.Option("--reset-schedules", help="Undo what was set of schedules and parameters."),
    ] = False,
) -> None:
    """Start what does not run yet, deploy, and print the address of the UI.

    The UI asks for a password (`sdpo server password`), or for PREFECT_SERVER_API_AUTH_STRING
    where that is set. Schedules, their parameters and whether they are active stay as they were
    set on the server.
    """
    from flows.commands import server

    if no_auth:
        err.print(
            "[yellow]warning:[/] without a password any account of this machine may run commands "
            "as you",
            highlight=False,
            soft_wrap=True,
        )
    url = server.up(
        host=host,
        port=port,
        folder=folder,
        console=out,
        hosts=allow_host or [],
        asks=not no_auth,
        reset_schedules=reset_schedules,
    )
    out.print(f"UI: {url}/deployments", highlight=False, soft_wrap=True)
    if not no_auth:
        out.print("it asks for a password: sdpo server password", highlight=False)
    out.print("a form filled with a recipe: sdpo server form demo", highlight=False)


@app.command()
def password(folder: ServerFolder = Path(".sdpo-server")) -> None:
    """Print the user name and password that the UI asks for, as user:password."""
    from flows.commands import server

    out.print(server.password(folder=folder), highlight=False, markup=False, soft_wrap=True)


@app.command()
def form(
    recipe: Recipe,
    overrides: Overrides = None,
    name: Name = "",
    folder: ServerFolder = Path(".sdpo-server"),
) -> None:
    """Print the address of the form of a run, filled with a recipe and ready to submit."""
    from flows.commands import server

    config = configured(recipe, overrides, name, 0, None)
    out.print(server.form_address(config, folder=folder), highlight=False, soft_wrap=True)


@app.command()
def down(folder: ServerFolder = Path(".sdpo-server")) -> None:
    """Stop what `sdpo server up` started; runs that are at work can be resumed."""
    from flows.commands import server

    server.down(folder=folder, console=out)


@app.command("status")
def server_status(folder: ServerFolder = Path(".sdpo-server")) -> None:
    """Say whether the server and the worker run; exit code 1 where one does not run or answer."""
    from flows.commands import server

    raise typer.Exit(server.status(folder=folder, console=out))
