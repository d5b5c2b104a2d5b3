"""An open run: its folder, its resolved recipe, and the one way to do a node only once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from partitions import PartitionError
from sdpo.config import RunConfig, settings_without_effect
from sdpo.config.load import check_run_name, make_config
from sdpo.errors import ConfigError, LowMemoryError, RunExistsError, UserError
from sdpo.events import Listener
from sdpo.hooks import Call, plain_call
from sdpo.identity.payloads import changes, run_identity
from sdpo.inputs.cache_folder import check_cache, claim_cache
from sdpo.inputs.resolve import (
    Resolved,
    cache_dir,
    idle_hint,
    precision_hint,
    resolve,
    restore_machine,
)
from sdpo.processes.devices import Occupy, hold_devices, unlimited
from sdpo.processes.stage_specs import Spec
from sdpo.processes.supervisor import run_stage
from sdpo.store.links import adopt
from sdpo.store.model_card import refresh_card
from sdpo.store.origin import Carried, Origin, carried_of, origin_chain, origin_of
from sdpo.store.resume_states import discard
from sdpo.store.run_folder import (
    NOT_DONE,
    Record,
    RunFolder,
    differences,
    matching,
    reuse,
    run_lock,
)
from sdpo.system import machine
from sdpo.system.files import checksum_path, remove, temporaries
from sdpo.system.locks import share
from sdpo.system.ownership import LOCK
from sdpo.system.privacy import withheld, withheld_by_folder, withholding

_UNVOUCHED = "run.yaml.sha256 is missing, so that a change of run.yaml would not be noticed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What run.yaml says, checked. ``clock`` is the time that chat templates see."""

    created: str
    clock: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    config: RunConfig
    versions: dict[str, str]
    origin: Origin | None
    carried: Carried | None

    @property
    def data_inputs(self) -> dict[str, str]:
        """Digests of the data alone."""
        return {name: digest for name, digest in self.inputs.items() if name.startswith("data.")}


def read_stored(run: RunFolder) -> Stored:
    """Read a run's run.yaml; its folders are where the run is now.

    Raises:
        UserError: there is no such run, or another version of this project wrote it.
        IntegrityError: run.yaml is not what was written.
    """
    content = run.read_run()
    versions = content.get("versions") or {}
    try:
        config = make_config(content["config"])
        store = config.store.model_copy(update={"runs_dir": str(run.path.absolute().parent)})
        where = {"name": run.path.name, "store": store}
        created = str(content["created"])
        return Stored(
            created=created,
            clock=str(content.get("clock", created)),
            identity=dict(content["identity"]),
            inputs=dict(content["inputs"]),
            config=config.model_copy(update=where),
            versions=dict(versions),
            origin=origin_of(content),
            carried=carried_of(content),
        )
    except (KeyError, TypeError, ValueError) as error:  # ConfigError is a ValueError
        wrote = versions.get("sdpo", "unknown") if isinstance(versions, Mapping) else "unknown"
        raise UserError(
            f"{run.run_file} does not fit this version of the project "
            f"({machine.versions()['sdpo']}; it was written by {wrote}): {_why(error)}. Take the "
            "run up with that version, or start a new one"
        ) from error


def _why(error: Exception) -> str:
    return f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)


@dataclass(slots=True, kw_only=True)
class Context:
    """What every node gets.

    ``clock`` is the time that chat templates see: that of the run's creation. ``origins`` are the
    runs that complete nodes are shared from, nearest first. ``executed`` are the nodes that had to
    be done, in order; ``shared`` those that came from an origin. ``call`` runs what has a name of
    its own within a node: the phases of a stage. ``occupy`` holds what limits the use of devices
    besides the host's own locks, while a stage runs.
    """

    run: RunFolder
    resolved: Resolved
    cache: Path
    clock: str
    listen: Listener
    locks: tuple[int, ...] = ()
    origin: Origin | None = None
    carried: Carried | None = None
    origins: tuple[RunFolder, ...] = ()
    executed: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    call: Call = plain_call
    occupy: Occupy = unlimited

    @property
    def config(self) -> RunConfig:
        """The resolved recipe."""
        return self.resolved.config

    @property
    def replayed(self) -> str:
        """The node that is done again although an origin has it; empty where there is none."""
        is_replay = self.origin is not None and self.origin.kind == "replay"
        return f"step-{self.origin.step}" if self.origin and is_replay else ""

    @property
    def last_step(self) -> int | None:
        """The step after which the chain ends; None: after the plan's last."""
        return self.origin.step if self.origin and self.origin.only else None

    def done(self, node: str, identity: Mapping[str, Any]) -> Record | None:
        """The node's record if it stands; otherwise says why it has to be done."""
        record, reason = self.find(node, identity)
        status = "reuse" if record else "run"
        self.listen({"event": "node", "node": node, "status": status, "reason": reason})
        if record is None:
            self.executed.append(node)
        return record

    def find(self, node: str, identity: Mapping[str, Any]) -> tuple[Record | None, str]:
        """The node's record if it stands here or in an origin, which then shares it; and why not.

        A node that is shared has a reason too: from where.
        """
        own = reuse(self.run, node, identity, explain=changes)
        if own.record:
            return own.record, ""
        if node == self.replayed:
            return None, self._replayed_with(identity) if own.reason == NOT_DONE else own.reason
        reasons = [own.reason]
        for origin in self.origins:
            there = matching(origin, node, identity, explain=changes)
            faults = adopt(self.run, node, origin, there.record) if there.record else []
            if there.record and not faults:
                self.shared.append(node)
                return self.run.read_record(node), f"shared from {origin.name}"
            why = "" if self._is_grown(node) else there.reason
            reasons.append("; ".join(f"{origin.name}: {fault}" for fault in faults) or why)
        reasons = [reason for reason in reasons if reason]
        return None, next((reason for reason in reasons if reason != NOT_DONE), NOT_DONE)

    def _replayed_with(self, identity: Mapping[str, Any]) -> str:
        """That a step is replayed, and what is changed in it."""
        found = [matching(o, self.replayed, identity, explain=changes) for o in self.origins[:1]]
        reasons = [there.reason for there in found if there.reason not in ("", NOT_DONE)]
        return " with ".join(["replayed", *reasons])

    def _is_grown(self, node: str) -> bool:
        """Whether a node of an extended run is another than its origin's because there is more."""
        is_extended = self.origin is not None and self.origin.kind == "extend"
        return is_extended and not node.startswith(("step-", "guide-"))

    def settle(self, node: str, record: Record) -> None:
        """Bring a complete step or guide into its final form: card and lineage of this run, no
        resume state (a death between record and tidying leaves one behind)."""
        folder = self.run.path / node
        discard(folder)
        refresh_card(self.run, record, name=record["name"], folder=folder / "model")

    def stage(self, spec: Spec, *locks: int) -> dict[str, Any]:
        """Run a stage, which holds the run's locks and ``locks`` as well; returns its result.

        One of several processes without memory ends the stage: it is run again with less.
        """
        keep = (*self.locks, *locks)
        with self._devices(spec) as devices:
            while True:
                try:
                    return run_stage(
                        spec, listen=self.listen, keep=(*keep, *devices), call=self.call
                    )
                except LowMemoryError as error:
                    self.listen({"event": "warning", "message": f"{error}; it starts again"})

    def _devices(self, spec: Spec) -> AbstractContextManager[tuple[int, ...]]:
        if not spec.uses_device:
            return nullcontext(())
        return hold_devices(spec.launch, run=self.run.name, listen=self.listen, occupy=self.occupy)


@contextmanager
def open_run(
    config: RunConfig,
    *,
    listen: Listener,
    origin: Origin | None = None,
    carried: Carried | None = None,
    wait: bool = False,
) -> Iterator[Context]:
    """Resolve ``config``, create its run folder or take it up again, and hold it.

    ``origin`` and ``carried`` are for a new run; one that is there knows its own. A new run that
    ends in a mistake of the user before a step is complete leaves nothing: the same name is free
    for the corrected recipe.

    Raises:
        RunExistsError: the run was made from another recipe or other inputs; names the fields.
        ForeignFolderError: what has the run's name, or the cache's, is something else.
        UserError: something that the recipe names is not there, or the run is in use.
    """
    if not config.name:
        raise ConfigError("the run has no name: set `name` (or --name)")
    name = check_run_name(config.name)
    run = RunFolder(Path(config.store.runs_dir).absolute() / name)
    run.check_own()
    check_cache(cache_dir(config))
    if run.run_file.is_file():
        stored = read_stored(run)
        config = restore_machine(config, stored.config)
        known = stored.data_inputs if stored.origin else {}
    else:
        known = _known_data(run, origin)
    resolved = resolve(config, known=known)
    cache = cache_dir(config)
    there = set(run.path.glob("*")) if run.path.is_dir() else set()
    run.path.parent.mkdir(parents=True, exist_ok=True)  # it holds other runs too
    with ExitStack() as held:
        held.enter_context(withholding(withheld_for(run, resolved, origin)))
        claim_cache(cache)
        run.claim()
        lock = held.enter_context(run_lock(run, wait=wait, listen=listen))
        run.claim()  # again: who had the lock may have given the name up
        cache_lock = held.enter_context(share(cache / LOCK))
        for path in temporaries(run.path):
            remove(path)
        new = not run.run_file.is_file()
        if new:
            if hint := precision_hint(config.training.precision, resolved.config.launch):
                listen({"event": "note", "message": hint})
            if hint := idle_hint(resolved.config.launch):
                listen({"event": "warning", "message": hint})
            run.write_run(_run_file(run, resolved, origin, carried))
        stored = read_stored(run)
        _check_same(run, stored, resolved, origin)
        if not new and not run.record_path("report").is_file():
            listen({"event": "interrupted", "run": run.name, "complete": run.complete_steps()})
        origins, missing = origin_chain(run, stored.origin)
        unvouched = [] if checksum_path(run.run_file).is_file() else [_UNVOUCHED]
        for line in [*unvouched, *settings_without_effect(config), *missing]:
            listen({"event": "warning", "message": line})
        context = Context(
            run=run,
            resolved=resolved,
            cache=cache,
            clock=stored.clock,
            listen=listen,
            locks=(lock, cache_lock),
            origin=stored.origin,
            carried=stored.carried,
            origins=tuple(origins),
        )
        try:
            yield context
        except (UserError, PartitionError):
            if new and not run.complete_steps():
                run.clear(keep=there)
            raise


def withheld_for(run: RunFolder, resolved: Resolved, origin: Origin | None = None) -> int:
    """Permission bits that nothing made by a run may have: its data, its model, the run itself or
    one that it comes from is closed to somebody."""
    config, model = resolved.config, resolved.model
    paths = [source.path for source in config.data.sources]
    paths += [config.supervised.path if config.supervised.from_source else ""]
    paths += [config.model.chat_template]
    bits = withheld([Path(path) for path in paths if path], place=run.path)
    for folder in (run.path, model, *([Path(origin.path)] if origin else [])):
        bits |= withheld_by_folder(folder)
    return bits


def _known_data(run: RunFolder, origin: Origin | None) -> dict[str, str]:
    """Digests of the origin's data: its normalised pairs are there, its files may have gone on."""
    if origin is None:
        return {}
    return read_stored(RunFolder(Path(origin.path))).data_inputs


def _run_file(
    run: RunFolder, resolved: Resolved, origin: Origin | None, carried: Carried | None
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": run.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": run_identity(resolved.config, dict(resolved.inputs)),
        "inputs": dict(resolved.inputs),
        "config": resolved.config.model_dump(),
        "versions": machine.versions(),
    }
    if origin:
        # A template that prints the date must print the origin's, or its tokens are not shared.
        content["clock"] = read_stored(RunFolder(Path(origin.path))).clock
        content["origin"] = origin.model_dump()
    if carried:
        content["carried"] = carried.model_dump()
    return content


def _check_same(run: RunFolder, stored: Stored, resolved: Resolved, origin: Origin | None) -> None:
    """Refuse a recipe, or an origin, that the run was not made from."""
    identity = run_identity(resolved.config, dict(resolved.inputs))
    changed = differences(stored.identity, identity)
    settings = differences(stored.config.model_dump(), resolved.config.model_dump())
    lines = _named(changed, settings)
    if origin:
        given, there = (o.model_dump() if o else {} for o in (origin, stored.origin))
        lines += differences(there, given, "origin")
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise RunExistsError(
            f"run {run.name} exists and was made from something else:\n{listed}\n"
            "give this one another name (--name), or undo the change"
        )


def _named(changed: list[str], settings: list[str]) -> list[str]:
    """Of the changed ``settings`` those that bear identity, with defaults; then changed inputs."""
    prefix = "settings."
    bearing = [c.removeprefix(prefix).split(":")[0] for c in changed if c.startswith(prefix)]

    def bears(line: str) -> bool:
        field = line.split(":", maxsplit=1)[0]
        return any(f"{field}.".startswith(f"{group}.") for group in bearing)

    return [*filter(bears, settings), *(c for c in changed if not c.startswith(prefix))]


def run_once(
    context: Context,
    node: str,
    identity: Mapping[str, Any],
    make: Callable[[], tuple[dict[str, Any], list[Path]]],
) -> Record:
    """Do ``make`` unless the node's record stands; its outputs and files become the record."""
    record = context.done(node, identity)
    if record is None:
        outputs, files = make()
        context.run.write_record(
            node, {"node": node, "identity": dict(identity), "outputs": outputs}, files=files
        )
        record = context.run.read_record(node)
        assert record is not None, f"{node} was just written"
    return record
