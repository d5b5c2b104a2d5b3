"""Find what a person means by a run, a step of it, or a model folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sdpo.config.load import check_run_name
from sdpo.errors import IntegrityError, UserError
from sdpo.store.lineage_file import LineageFile
from sdpo.store.records import first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json
from sdpo.system.nearby import near_path

_STEP = re.compile(r"step-(\d{1,9})")
_OTHERWISE = re.compile(r"(?:(?:step|M)[-_ ]?)?(\d{1,9})/?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint is a run, and a step of it where one is meant."""

    run: RunFolder
    step: int | None = None

    @property
    def name(self) -> str:
        """Return the name as a person would write it."""
        return self.run.name if self.step is None else f"{self.run.name}/step-{self.step}"


def locate(target: str, *, runs_dir: Path, step: int | None = None) -> Checkpoint:
    """Return the run or checkpoint of a name (``tiny``, ``tiny/step-2``) or of a path to it.

    A model folder that was copied is found by its lineage, among the runs in ``runs_dir``.
    ``step``: the step that is meant, where it is given beside the run.

    Raises:
        UserError: it is none of these, or names another step than ``step``.
    """
    found = _existing(target, runs_dir)
    if found is None and (Path(target) / "lineage.json").is_file():
        found = by_lineage(Path(target), runs_dir)
    if found is None:
        found = _by_name(target, runs_dir)
        found.run.check_there()  # says which runs there are
    if step is None or found.step == step:
        return found
    if found.step is not None:
        raise UserError(f"{target} is step {found.step}, and step {step} is asked for: give one")
    return Checkpoint(found.run, step)


def locate_run(target: str, *, runs_dir: Path) -> RunFolder:
    """Return the run of a name or a path, for what is done to all of it; it need not be readable.

    Raises:
        UserError: it cannot be one, or is a step of one.
    """
    found = _existing(target, runs_dir) or _by_name(target, runs_dir)
    if found.step is not None:
        raise UserError(f"{target} is a step, and a run is asked for: {found.run.name}")
    return found.run


def _existing(target: str, runs_dir: Path) -> Checkpoint | None:
    for path in (Path(target), runs_dir / target):
        if path.is_dir() and (path != Path(target) or "/" in target or _is_known(path)):
            found = _at(path.absolute())
            if found:
                return found
    return None


def _by_name(target: str, runs_dir: Path) -> Checkpoint:
    """Return what a name means, whether or not it is there."""
    name, _, rest = target.strip("/").partition("/")
    step = _STEP.fullmatch(rest)
    if "/" in target and not step:
        near = near_path(Path(target)) or near_path(runs_dir / target)
        meant = _meant(name, rest) or str(near or "")
        hint = f": did you mean {meant}?" if meant else " (write RUN, RUN/step-2, or a path)"
        raise UserError(
            f"{target} is neither a run, nor a step of one, nor a model with a lineage{hint}"
        )
    return Checkpoint(RunFolder(runs_dir / check_run_name(name)), int(step[1]) if step else None)


def _meant(name: str, rest: str) -> str:
    """Return ``tiny/step-1`` for what others write: `tiny/1`, `tiny/step1`, `tiny/M_1`."""
    step = _OTHERWISE.fullmatch(rest)
    return f"{name}/step-{step[1]}" if step else ""


def _is_known(path: Path) -> bool:
    return (path / "run.yaml").is_file()


def _at(path: Path) -> Checkpoint | None:
    """Return the checkpoint whose folder, or whose model's folder, this is."""
    if _is_known(path):
        return Checkpoint(RunFolder(path))
    folder = path.parent if path.name == "model" else path
    step = _STEP.fullmatch(folder.name)
    if step and _is_known(folder.parent):
        return Checkpoint(RunFolder(folder.parent), int(step[1]))
    return None


def read_lineage(folder: Path) -> LineageFile:
    """Return what ``lineage.json`` of a model folder says.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = folder / "lineage.json"
    if not path.is_file():
        raise UserError(f"{folder} has no lineage.json: this project did not publish it")
    try:
        content = read_json(path)
    except IntegrityError as error:
        raise UserError(str(error)) from error
    try:
        said = LineageFile.model_validate(content)
    except ValidationError as error:
        if error.errors()[0]["loc"][:1] == ("export",):
            raise UserError(
                f"{path} is not that of an exported model: `export` is damaged"
            ) from error
        raise UserError(f"{path} is not the lineage of a model: {first_fault(error)}") from error
    if not all(entry.outputs.get("model") for entry in said.steps):
        raise UserError(f"{path} is not the lineage of a model: it names no model of a step")
    return said


def by_lineage(folder: Path, runs_dir: Path) -> Checkpoint:
    """Return the step of a run in ``runs_dir`` that made the model in ``folder``, or its original.

    Raises:
        UserError: no run there has made it.
    """
    content = read_lineage(folder)
    last = content.steps[-1]
    runs = sorted(path.parent for path in runs_dir.glob("*/run.yaml"))
    for path in sorted(runs, key=lambda path: path.name != content.run):
        run, node = RunFolder(path), f"step-{last.step}"
        record = None if run.is_damaged(node) else run.find_step(node)
        if record and record.model == last.outputs["model"]:
            return Checkpoint(run, last.step)
    raise UserError(
        f"{folder} is {content.model} of run {content.run}, and no "
        f"run in {runs_dir.absolute()} has made it: give --runs-dir, or the run itself"
    )
