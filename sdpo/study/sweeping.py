"""Plan a sweep by what is asked for: a grid, or a search with Optuna."""

from collections.abc import Callable, Sequence

from sdpo.config import RunConfig
from sdpo.errors import ConfigError
from sdpo.hooks import Host
from sdpo.study.compare import Keep
from sdpo.study.folder import StudyFolder
from sdpo.study.search import plan_search, run_search
from sdpo.study.sweep import SweepDone, plan_sweep, run_sweep


def planned_sweep(
    config: RunConfig,
    *,
    over: Sequence[str],
    trials: int = 0,
    seeds: int = 1,
    prune: bool = False,
    name: str = "",
    keep: Keep = "models",
    wait: bool = False,
    side_by_side: int = 1,
    host_of: Callable[[str], Host] | None = None,
) -> tuple[StudyFolder, Callable[[Host], SweepDone]]:
    """Return the folder of a sweep, and what makes it; nothing is written yet.

    With ``trials`` Optuna proposes so many, else it is the grid of all values, each trained with
    so many ``seeds``, and ``side_by_side`` at a time.

    Raises:
        UserError: it cannot be, see :func:`plan_sweep` and :func:`plan_search`.
    """
    if trials and seeds != 1:
        raise ConfigError(
            "--seeds is of a grid: a search trains each proposal once, and what it finds can be "
            "compared over seeds (sdpo compare STUDY/best.yaml --seeds 3)"
        )
    if trials and side_by_side != 1:
        raise ConfigError(
            "--side-by-side is of a grid: each trial of a search is proposed by what those before "
            "it came to"
        )
    if trials:
        search = plan_search(config, over=over, trials=trials, prune=prune, name=name)
        return search.study, lambda host: run_search(
            search, keep=keep, host=host, host_of=host_of, wait=wait
        )
    if prune:
        raise ConfigError("--prune ends trials of a search early: say how many, with --trials N")
    grid = plan_sweep(config, over=over, seeds=seeds, name=name)
    if grid.study.journal.is_file():
        raise ConfigError(
            f"study {grid.study.name} is a search: go on with it by --trials, or give the grid "
            "another name (--name)"
        )
    return grid.study, lambda host: run_sweep(
        grid, keep=keep, host=host, host_of=host_of, wait=wait, side_by_side=side_by_side
    )
