"""Refuse beforehand what a study would fail of, and say what it needs of the disk."""

from collections.abc import Sequence
from pathlib import Path

from sdpo.chain.open_run import objection, withheld_for
from sdpo.config import RunConfig
from sdpo.errors import DiskFullError, UserError
from sdpo.inputs.locate import model_folder
from sdpo.inputs.resolve import cache_dir, resolve
from sdpo.processes.disk_space import free_bytes, in_units, step_needs
from sdpo.study.arms import Trial, planned_steps, shared_steps
from sdpo.study.folder import StudyFolder
from sdpo.system.json_values import JsonObject
from sdpo.system.privacy import withheld_by_folder
from sdpo.system.words import counted, noun

_STATES = "resume states"


def check_trials(
    study: StudyFolder,
    trials: Sequence[Trial],
    *,
    keeps_models: bool,
    more: int = 0,
    at_once: int = 1,
) -> None:
    """Refuse what would fail or be refused later; nothing is written.

    ``more``: so many runs like the last one are to follow. ``at_once``: so many run at a time.

    Raises:
        UserError: something that a recipe names is not there, or a run of the study was made from
            something else.
        DiskFullError: the disk is too small for the runs that are still to be made.
    """
    configs = [(trial.name, trial.config) for trial in trials if trial.config is not None]
    looked_up: list[JsonObject] = []
    for name, config in configs:
        run, names = study.run(name), _names(config)
        if not run.run_file.is_file() and names in looked_up:
            continue
        try:
            resolved = resolve(config)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        looked_up.append(names)
        if said := objection(run, resolved):
            raise UserError(f"in study {study.name}: {said} (the study's)")
    missing = [config for name, config in configs if not study.result(name).is_file()]
    runs = len(missing) + more
    needed = needed_bytes(missing, folder=study.path, keeps_models=keeps_models, at_once=at_once)
    if more and keeps_models:
        needed += more * needed_bytes([configs[-1][1]], folder=study.path, keeps_models=True)
    free = free_bytes(study.path)
    if needed > free:
        less = ", let runs go once they are measured (--keep none)" if keeps_models else ""
        raise DiskFullError(
            f"the study is not started, since the disk is too small for it: {counted(runs, 'run')} "
            f"{noun(runs, 'needs', 'need')} "
            f"{in_units(needed)} in {study.path}, and {in_units(free)} are free. Make room, "
            f"name another disk (--runs-dir){less}, or compare less"
        )


def _names(config: RunConfig) -> JsonObject:
    """Return the settings that name something which has to be looked up."""
    references = [training.reference_model for training in config.trainings.values()]
    groups = config.model_dump(include={"model", "data", "supervised", "launch", "evaluation"})
    return {**groups, "references": references, "precision": config.training.precision}


def needed_bytes(
    configs: Sequence[RunConfig], *, folder: Path, keeps_models: bool, at_once: int = 1
) -> int:
    """Return the bytes that runs of these recipes write into ``folder``, ``at_once`` at a time.

    A step that an earlier one of them makes alike is linked and takes none. Cached log-probs are
    not counted, nor is S where a run trains it: it is shared. Resume states are those of one step
    of each run at a time. Unless ``keeps_models``, a run goes as soon as its numbers are known.
    """
    most, runs = 0, list[tuple[int, int]]()
    for number, config in enumerate(configs):
        sizes, states = _weights(config, folder)
        alike = max((shared_steps(other, config) for other in configs[:number]), default=0)
        runs.append((sum(sizes[alike:]), states))
        kept = sum(own for own, _ in runs[:-at_once]) if keeps_models else 0
        most = max(most, kept + sum(map(sum, runs[-at_once:])))
    return most


def _weights(config: RunConfig, folder: Path) -> tuple[list[int], int]:
    """Return the bytes of the weights of each step, and the most that resume states take."""
    cache = cache_dir(config)
    model = model_folder(config.model, cache=cache)
    sizes, states = [], 0
    for step in range(1, (planned_steps(config) or max(1, len(config.steps))) + 1):
        needs = step_needs(model, config.training_of(step), run=folder, cache=cache, rows=0)
        sizes.append(sum(n.size_bytes for n in needs if n.folder == folder and n.what != _STATES))
        states = max(states, sum(n.size_bytes for n in needs if n.what == _STATES))
    return sizes, states


def withheld_from(study: StudyFolder, trials: Sequence[Trial]) -> int:
    """Return the permission bits that nothing made by a study may have.

    They are those that its data, its model, its folder or a run that it reads withhold.
    """
    bits = withheld_by_folder(study.path)
    for trial in trials:
        if trial.run is not None:
            bits |= withheld_by_folder(trial.run)
    first = next((trial for trial in trials if trial.config is not None), None)
    if first is not None and first.config is not None:
        bits |= withheld_for(study.run(first.name), resolve(first.config))
    return bits
