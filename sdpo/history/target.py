"""What a person means by a run, a step of it, or a model folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.config.load import check_run_name
from sdpo.errors import IntegrityError, UserError
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run, and a step of it where one is meant."""

    run: RunFolder
    step: int | None = None

    @property
    def name(self) -> str:
        """As a person would write it."""
        return self.run.name if self.step is None else f"{self.run.name}/step-{self.step}"


def locate(target: str, *, runs_dir: Path) -> Checkpoint:
    """The run or checkpoint of a name (``tiny``, ``tiny/step-2``) or a path to it.

    A model folder that was copied is found by its lineage, among the runs in ``runs_dir``.

    Raises:
        UserError: it is none of these.
    """
    for path in (Path(target), runs_dir / target):
        if path.is_dir() and (path != Path(target) or "/" in target or _is_known(path)):
            found = _at(path.absolute())
            if found:
                return found
    folder = Path(target)
    if (folder / "lineage.json").is_file():
        return _by_lineage(folder, runs_dir)
    name, _, rest = target.strip("/").partition("/")
    if "/" in target and not _STEP.fullmatch(rest):
        raise UserError(f"{target} is neither a run, nor a step of one, nor a model with a lineage")
    run = RunFolder(runs_dir / check_run_name(name))
    run.read_run()  # says which runs there are
    step = _STEP.fullmatch(rest)
    return Checkpoint(run, int(step[1]) if step else None)


def _is_known(path: Path) -> bool:
    return (path / "run.yaml").is_file()


def _at(path: Path) -> Checkpoint | None:
    """The checkpoint whose folder, or whose model's folder, this is."""
    if _is_known(path):
        return Checkpoint(RunFolder(path))
    folder = path.parent if path.name == "model" else path
    step = _STEP.fullmatch(folder.name)
    if step and _is_known(folder.parent):
        return Checkpoint(RunFolder(folder.parent), int(step[1]))
    return None


def read_lineage(folder: Path) -> dict[str, Any]:
    """``lineage.json`` of a model folder.

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
        last = content["steps"][-1]
        whole = isinstance(last["outputs"]["model"], str) and type(last["step"]) is int
    except (KeyError, IndexError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is not the lineage of a model")
    return dict(content)


def _by_lineage(folder: Path, runs_dir: Path) -> Checkpoint:
    content = read_lineage(folder)
    last = content["steps"][-1]
    runs = sorted(path.parent for path in runs_dir.glob("*/run.yaml"))
    for path in sorted(runs, key=lambda path: path.name != content.get("run")):
        run, node = RunFolder(path), f"step-{last['step']}"
        record = None if run.is_damaged(node) else run.find_step(node)
        if record and record.model == last["outputs"]["model"]:
            return Checkpoint(run, last["step"])
    raise UserError(
        f"{folder} is {content.get('model', 'a model')} of run {content.get('run', '?')}, and no "
        f"run in {runs_dir.absolute()} has made it: give --runs-dir, or the run itself"
    )
