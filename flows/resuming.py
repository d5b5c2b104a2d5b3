"""Going on with a run: its stored recipe through the same chain."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from flows.commands import run_recipe
from partitions import PartitionError
from sdpo.config import RunConfig, StoreConfig
from sdpo.errors import Interrupted, UserError
from sdpo.recipe import make_config
from sdpo.store import RunFolder


def resume_run(run: Path, *, console: Console) -> None:
    """Bring a run to its last step, from wherever it stopped."""
    with hint(config := stored_config(RunFolder(run.absolute()))):
        run_recipe(config, console=console, prefect=False)


def stored_config(run: RunFolder) -> RunConfig:
    """The recipe that a run was made from; the folder may have moved since.

    Raises:
        UserError: there is no such run.
        ConfigError: its recipe is not one.
    """
    config = make_config(run.read_run()["config"])
    store = config.store.model_copy(update={"runs_dir": str(run.path.parent)})
    return config.model_copy(update={"name": run.path.name, "store": store})


@contextmanager
def hint(config: RunConfig) -> Iterator[None]:
    """Add to whatever stops the run how to go on with it."""
    try:
        yield
    except (UserError, PartitionError):
        raise
    except KeyboardInterrupt:
        stopped = Interrupted("interrupted")
        stopped.add_note(_how(config))
        raise stopped from None
    except Exception as error:
        if RunFolder(Path(config.store.runs_dir) / config.name).run_file.is_file():
            error.add_note(_how(config))
        raise


def _how(config: RunConfig) -> str:
    where = config.store.runs_dir
    elsewhere = Path(where).absolute() != Path(StoreConfig().runs_dir).absolute()
    return f"go on with: sdpo resume {config.name}" + (
        f" --runs-dir {shlex.quote(where)}" if elsewhere else ""
    )
