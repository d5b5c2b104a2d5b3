"""Keep which model is in use: names beside the runs, each with the versions that it has had.

``registry.json`` is in the folder of the runs. A name has versions, numbered from 1, which are
never changed or removed, and moves, the record of how `current` went from one to another. The file
is replaced by rename under a lock, so a reader sees the old state or the new one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.config.load import check_run_name
from sdpo.errors import IntegrityError, UserError
from sdpo.events import Listener
from sdpo.history.target import Checkpoint
from sdpo.identity.model_digest import model_digest
from sdpo.store.origin import origin_chain
from sdpo.store.published_files import strays
from sdpo.store.recorded import damage_beside_weights
from sdpo.store.records import PlanOutputs
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.system.files import read_json, write_json
from sdpo.system.locks import hold
from sdpo.system.nearby import near_name

REGISTRY = "registry.json"
_LOCK = ".registry.lock"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Version(_Entry):
    """A version is a promoted model, M_step of a run; ``replaced``: the version before it, or 0.

    ``digest`` is the model's, ``when`` in UTC.
    """

    version: int
    run: str
    step: int
    digest: str
    when: str
    why: str
    replaced: int


class Move(_Entry):
    """A move took `current` from one version to another; ``from_version`` 0: from none."""

    from_version: int
    to_version: int
    when: str
    why: str


class RegisteredModel(_Entry):
    """A registered model is what a name stands for, and stood for. ``current`` is in use."""

    name: str
    current: int
    versions: tuple[Version, ...]
    moves: tuple[Move, ...]

    @property
    def in_use(self) -> Version:
        """Return the version in use."""
        return self.version(self.current)

    def version(self, number: int) -> Version:
        """Return the version of a number.

        Raises:
            UserError: there is none of that number.
        """
        for version in self.versions:
            if version.version == number:
                return version
        listed = ", ".join(str(version.version) for version in self.versions)
        raise UserError(f"{self.name} has no version {number}; versions: {listed}")


class _Content(_Entry):
    format: Literal[1]
    names: dict[str, RegisteredModel]


def read_registry(runs_dir: Path) -> dict[str, RegisteredModel]:
    """Return every name with its versions; empty where nothing was promoted yet.

    Raises:
        IntegrityError: the file is not a registry.
    """
    path = runs_dir / REGISTRY
    if not os.path.lexists(path):
        return {}
    try:
        return dict(_Content.model_validate(read_json(path)).names)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(
            f"{path} is damaged, or another version of this project wrote it: {where}: "
            f"{first['msg']}"
        ) from error


def current(name: str, *, runs_dir: Path) -> RegisteredModel:
    """Return what ``name`` stands for.

    Raises:
        UserError: nothing was promoted under that name; says how to.
    """
    names = read_registry(runs_dir)
    if name in names:
        return names[name]
    near = near_name(name, names)
    hint = f" (did you mean {near}?)" if near else ""
    known = f"; names there: {', '.join(sorted(names))}" if names else ""
    raise UserError(
        f"nothing was promoted as {name} yet{hint}{known}: promote a finished run with "
        f"`sdpo promote RUN --name {name}`"
    )


def promote(
    found: Checkpoint,
    *,
    runs_dir: Path,
    name: str = "",
    why: str = "",
    expected: int | None = None,
    listen: Listener = lambda event: None,
) -> RegisteredModel:
    """Make a complete step's model the current one of ``name``; the run's last step by default.

    ``name`` defaults to the name that the run, or one that it comes from, was promoted under
    already, else to that of the run that it comes from first. ``expected``: the version that must
    still be the current one, or 0 for none. A model that is current already stays so.

    Raises:
        UserError: the step is not complete, or `current` was moved by somebody else meanwhile.
        IntegrityError: the model's folder does not hold the model that its record names.
    """
    step = last_step(found.run) if found.step is None else found.step
    digest = checked_digest(found.run, step)
    run = _as_kept(found.run, runs_dir)
    name = check_run_name(name or default_name(found.run, runs_dir=runs_dir))
    with _registry(runs_dir, listen) as names:
        old = names.get(name)
        before = old.current if old else 0
        if expected is not None and before != expected:
            raise UserError(
                f"{name} is at version {before} now and was at {expected}: somebody moved it "
                f"meanwhile. Look at `sdpo current {name}`, then promote by hand"
            )
        if old and (old.in_use.run, old.in_use.step, old.in_use.digest) == (run, step, digest):
            return old
        version = Version(
            version=len(old.versions) + 1 if old else 1,
            run=run,
            step=step,
            digest=digest,
            when=_now(),
            why=why or "promoted by hand",
            replaced=before,
        )
        versions = (*(old.versions if old else ()), version)
        return _move(names, name, versions, old.moves if old else (), version, version.why)


def rollback(
    name: str,
    *,
    runs_dir: Path,
    to: int | None = None,
    why: str = "",
    expected: int | None = None,
    listen: Listener = lambda event: None,
) -> RegisteredModel:
    """Make an earlier version current again: ``to``, else the one that the current one replaced.

    ``expected``: the version that must still be the current one.

    Raises:
        UserError: nothing stood before it, there is no such version, or `current` was moved by
            somebody else meanwhile.
        IntegrityError: its model is not what it was.
    """
    there = current(name, runs_dir=runs_dir)
    if expected is not None and there.current != expected:
        raise UserError(
            f"{name} is at version {there.current} now and was at {expected}: somebody moved it "
            f"meanwhile. Look at `sdpo current {name}`, then roll back by hand"
        )
    target = there.in_use.replaced if to is None else to
    if not target:
        raise UserError(
            f"version {there.current} of {name} is the first one: there is nothing to go back to"
        )
    version = there.version(target)
    now = checked_digest(RunFolder(runs_dir / version.run), version.step)
    if now != version.digest:
        raise IntegrityError(
            f"M_{version.step} of run {version.run} is another model than version {target} of "
            f"{name}: its digest is {now[:16]}, not {version.digest[:16]}"
        )
    with _registry(runs_dir, listen) as names:
        latest = names[name]
        if latest.current != there.current:
            raise UserError(f"{name} was moved by somebody else meanwhile: look again")
        if latest.current == target:
            return latest
        reason = why or f"rolled back from version {latest.current}"
        return _move(names, name, latest.versions, latest.moves, version, reason)


def default_name(run: RunFolder, *, runs_dir: Path) -> str:
    """Return the name under which a run is promoted unless one is given: see :func:`promote`.

    Raises:
        UserError: runs that it comes from stand under several names.
    """
    chain, _ = origin_chain(run, read_stored(run).origin)
    family = [run, *chain]
    kept = {_as_kept(member, runs_dir) for member in family}
    names = [
        name
        for name, lineage in read_registry(runs_dir).items()
        if any(version.run in kept for version in lineage.versions)
    ]
    if len(names) > 1:
        raise UserError(
            f"run {run.name} belongs to several names: {', '.join(sorted(names))}. Say which one "
            "is meant (--name)"
        )
    return names[0] if names else family[-1].name


def last_step(run: RunFolder) -> int:
    """Return the last step of a run that is complete to its end.

    The end of a replay may come before the end of its plan.

    Raises:
        UserError: it is not, or has no step.
    """
    origin, plan = read_stored(run).origin, run.find("plan")
    steps = plan.read_outputs(PlanOutputs).steps if plan else 0
    if origin and origin.only:
        steps = origin.step
    missing = [n for n in range(1, steps + 1) if run.read_record(f"step-{n}") is None]
    if not steps or missing:
        what = f"step {missing[0]} is not complete" if missing else "it has no plan yet"
        raise UserError(
            f"run {run.name} is not finished, since {what}: finish it first (`sdpo resume "
            f"{run.name}`), or name a step: {run.name}/step-1"
        )
    return steps


def checked_digest(run: RunFolder, step: int) -> str:
    """Return the digest of M_step, after checking that it is what its record says.

    Raises:
        UserError: the step is not complete.
        IntegrityError: the folder holds something else, or something more.
    """
    run.check_there()
    record = run.find_step(f"step-{step}")
    if record is None:
        done = ", ".join(map(str, run.complete_steps())) or "none"
        raise UserError(f"run {run.name} has no complete step {step}; complete: {done}")
    wanted = record.model
    found = model_digest(run.model(step))
    if found != wanted:
        raise IntegrityError(
            f"{run.model(step)} does not hold M_{step} of run {run.name}: its digest is "
            f"{found[:16]}, not {wanted[:16]} (`sdpo verify {run.name}` says more)"
        )
    if damage := damage_beside_weights(run, record, run.model(step)):
        raise IntegrityError(
            f"{run.model(step)} does not hold what was published with M_{step} of run {run.name}: "
            f"{damage[0]} (`sdpo verify {run.name}` says more)"
        )
    if unknown := strays(run, f"step-{step}", record):
        raise IntegrityError(
            f"{run.path / unknown[0]} was not published with M_{step} of run {run.name}, so that "
            "another program may take the folder for another model: move it elsewhere"
        )
    return found


def _as_kept(run: RunFolder, runs_dir: Path) -> str:
    """Return a run as the registry names it: by its name if it is beside the registry."""
    path = run.path.absolute()
    beside = path.parent == runs_dir.absolute() or (
        runs_dir.is_dir() and path.parent.samefile(runs_dir)
    )
    return run.name if beside else str(path)


def _move(
    names: dict[str, RegisteredModel],
    name: str,
    versions: tuple[Version, ...],
    moves: tuple[Move, ...],
    to: Version,
    why: str,
) -> RegisteredModel:
    before = names[name].current if name in names else 0
    move = Move(from_version=before, to_version=to.version, when=_now(), why=why)
    names[name] = RegisteredModel(
        name=name, current=to.version, versions=versions, moves=(*moves, move)
    )
    return names[name]


@contextmanager
def _registry(runs_dir: Path, listen: Listener) -> Iterator[dict[str, RegisteredModel]]:
    """Hold the registry for this process, and publish what became of it at the end."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    with hold(runs_dir / _LOCK, what="the registry", wait=True, listen=listen):
        before = read_registry(runs_dir)
        names = dict(before)
        yield names
        if names != before:
            write_json(runs_dir / REGISTRY, _Content(format=1, names=names).model_dump())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
