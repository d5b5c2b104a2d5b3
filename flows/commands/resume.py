"""Resume a run, here or from a remote store: take its stored recipe through the same chain."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.commands.run import run_recipe
from flows.show.console import RunConsole
from flows.show.status import how_to_go_on
from partitions import PartitionError
from sdpo.config import RunConfig
from sdpo.errors import Interrupted, UserError
from sdpo.history.pull import pull_run
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import stored_recipe


def resume_kept(
    target: str, *, runs_dir: Path, console: Console, processes: int = 0, wait: bool = False
) -> None:
    """Bring a run that a remote store keeps to its last step, in ``runs_dir``."""
    with RunConsole(console) as listen:
        run = pull_run(target, runs_dir=runs_dir, start_only=True, listen=listen)
    resume_run(run.path, console=console, processes=processes, wait=wait)


def pull(target: str, *, runs_dir: Path, console: Console) -> None:
    """Receive a run from a remote store, and print where it is."""
    with RunConsole(console) as listen:
        run = pull_run(target, runs_dir=runs_dir, listen=listen)
    steps = run.complete_steps()
    done = f"steps {', '.join(map(str, steps))} complete" if steps else "no step complete"
    console.print(
        f"run {run.name} is in {escape(str(run.path))}: {done}", highlight=False, soft_wrap=True
    )


def resume_run(run: Path, *, console: Console, processes: int = 0, wait: bool = False) -> None:
    """Bring a run to its last step, from wherever it stopped, by ``processes``; 0: by its own."""
    folder = RunFolder(run.absolute())
    folder.check_own()
    with hint(config := stored_recipe(folder, processes=processes)):
        run_recipe(config, console=console, prefect=False, wait=wait)


@contextmanager
def hint(config: RunConfig) -> Iterator[None]:
    """Add a note on how to go on to what stops the run, unless that is the user's mistake.

    Raises:
        Interrupted: in place of a KeyboardInterrupt, which prints no notes.
    """
    run = RunFolder(Path(config.store.runs_dir) / config.name)
    with noted(lambda: _how(config), is_there=run.run_file.is_file):
        yield


@contextmanager
def noted(how: Callable[[], str], *, is_there: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Add ``how`` to go on to what stops the work, unless that is the user's mistake.

    A fault gets it where ``is_there`` says that there is something to go on with.

    Raises:
        Interrupted: in place of a KeyboardInterrupt, which prints no notes.
    """
    try:
        yield
    except (UserError, PartitionError):
        raise
    except KeyboardInterrupt:
        stopped = Interrupted("interrupted")
        stopped.add_note(how())
        raise stopped from None
    except Exception as error:
        if is_there():
            error.add_note(how())
        raise


def _how(config: RunConfig) -> str:
    return how_to_go_on(config.name, runs_dir=config.store.runs_dir)
