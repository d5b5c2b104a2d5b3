"""Run from a program: to the end, on from where a run stopped, or a step of one again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo.api.dataset_rows import rows_written
from sdpo.api.progress import shown
from sdpo.api.recipes import Overrides, load_recipe, override_lines
from sdpo.api.run import Run
from sdpo.chain.run_chain import run_chain
from sdpo.config import RunConfig
from sdpo.errors import UserError
from sdpo.events import Listener
from sdpo.history.replay import plan_replay, replay_step
from sdpo.hooks import Host
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import stored_recipe
from sdpo.system.json_values import JsonObject


def run(
    recipe: str | Path | JsonObject | RunConfig,
    *,
    overrides: Overrides = (),
    listen: Listener | None = None,
    wait: bool = False,
) -> Run:
    """Bring a recipe's run to its last step; what is done already is not done again.

    ``recipe`` and ``overrides`` as in :func:`sdpo.load_recipe`. Rows of ``datasets.Dataset``
    sources are written into the run first. ``listen`` gets every event, else progress is shown.
    With ``wait``, waits for another process that works on the run.

    Raises:
        UserError: something that the recipe names cannot be used, or a run of this name was made
            from something else.
        Fault: a stage failed; what was published before stands.
    """
    loaded = load_recipe(recipe, overrides=overrides)
    config = RunConfig.model_validate(loaded.model_dump())
    with (
        shown(listen, name=config.name) as listener,
        _how_to_go_on(config),
        rows_written(config, loaded.datasets, listen=listener, wait=wait) as written,
    ):
        return Run(run_chain(written, host=Host(listen=listener), wait=wait).run)


def resume(
    name: str | Path | Run,
    *,
    runs_dir: str | Path = "runs",
    processes: int = 0,
    listen: Listener | None = None,
    wait: bool = False,
) -> Run:
    """Go on with a run that stopped, with the recipe and the data that it was made from.

    ``name``: its name in ``runs_dir``, its folder, or the run itself; ``processes``: as many from
    here on, 0 as many as it had; the rest as in :func:`sdpo.run`.

    Raises:
        UserError: there is no such run, it is in use, or so many cannot go on with it.
        Fault: a stage failed; what was published before stands.
    """
    folder = RunFolder(Run(name, runs_dir=runs_dir).path)
    folder.check_own()
    config = stored_recipe(folder, processes=processes)
    with shown(listen, name=config.name) as listener, _how_to_go_on(config):
        return Run(run_chain(config, host=Host(listen=listener), wait=wait).run)


def replay(
    run: str | Path | Run,
    step: int,
    overrides: Overrides = (),
    *,
    only: bool = False,
    name: str = "",
    runs_dir: str | Path = "runs",
    listen: Listener | None = None,
    wait: bool = False,
) -> Run:
    """Make a step of a finished run again in a new run; the later steps follow where they change.

    ``overrides`` change settings from this step on; those of ``training`` are the step's alone.
    With ``only`` the new run ends after the step. ``name``: of the new run, by default
    ``<run>-replay-<step>``. What differs from the old one is :meth:`sdpo.Run.comparison` of the
    run that is returned.

    Raises:
        UserError: the step was never finished, or an override reaches back behind it.
        Fault: a stage failed; what was published before stands.
    """
    planned = plan_replay(
        RunFolder(Run(run, runs_dir=runs_dir).path),
        step=step,
        overrides=override_lines(overrides),
        only=only,
        name=name,
    )
    with shown(listen, name=planned.config.name) as listener, _how_to_go_on(planned.config):
        return Run(replay_step(planned, host=Host(listen=listener), wait=wait).chain.run)


@contextmanager
def _how_to_go_on(config: RunConfig) -> Iterator[None]:
    """Add to whatever stops the run, but a mistake of the user, how to go on with it."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        folder = RunFolder(Path(config.store.runs_dir).absolute() / config.name)
        if folder.run_file.is_file():
            error.add_note(f"go on with: sdpo.resume({str(folder.path)!r})")
        raise
