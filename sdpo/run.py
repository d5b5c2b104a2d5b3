"""An open run: its folder, its resolved recipe, and the one way to do a node only once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from partitions import PartitionError
from sdpo import machine
from sdpo.config import RunConfig, settings_without_effect
from sdpo.errors import ConfigError, RunExistsError, UserError
from sdpo.events import Listener
from sdpo.files import sweep_temporaries
from sdpo.identity import run_identity
from sdpo.recipe import check_run_name
from sdpo.resolve import Resolved, cache_dir, resolve, restore_machine
from sdpo.spec import Spec
from sdpo.store import Record, RunFolder, differences, reuse, run_lock
from sdpo.supervisor import run_stage


@dataclass(slots=True, kw_only=True)
class Context:
    """What every node gets.

    ``clock`` is the time that chat templates see: that of the run's creation. ``executed`` are the
    nodes that had to be done, in order.
    """

    run: RunFolder
    resolved: Resolved
    cache: Path
    clock: str
    listen: Listener
    lock: int
    executed: list[str] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        """The resolved recipe."""
        return self.resolved.config

    def done(self, node: str, identity: Mapping[str, Any]) -> Record | None:
        """The node's record if it stands; otherwise says why it has to be done."""
        found = reuse(self.run, node, identity)
        status = "reuse" if found.record else "run"
        self.listen({"event": "node", "node": node, "status": status, "reason": found.reason})
        if found.record is None:
            self.executed.append(node)
        return found.record

    def stage(self, spec: Spec) -> dict[str, Any]:
        """Run a stage and return its result."""
        return run_stage(spec, listen=self.listen, keep=[self.lock])


@contextmanager
def open_run(config: RunConfig, *, listen: Listener) -> Iterator[Context]:
    """Resolve ``config``, create its run folder or find it again, and hold it.

    A new run that ends in a mistake of the user before a step is complete leaves nothing: the same
    name is free for the corrected recipe.

    Raises:
        RunExistsError: the run was made from another recipe or other inputs; names the fields.
        UserError: something that the recipe names is not there, or the run is in use.
    """
    if not config.name:
        raise ConfigError("the run has no name: set `name` (or --name)")
    name = check_run_name(config.name)
    run = RunFolder(Path(config.store.runs_dir).absolute() / name)
    if run.run_file.is_file():
        config = restore_machine(config, RunConfig.model_validate(run.read_run()["config"]))
    resolved = resolve(config)
    there = set(run.path.glob("*")) if run.path.is_dir() else set()
    with run_lock(run) as lock:
        sweep_temporaries(run.path)
        new = not run.run_file.is_file()
        if new:
            clock = datetime.now(UTC).isoformat(timespec="seconds")
            run.write_run(_run_file(name, resolved, clock))
        else:
            clock = _same_run(run, resolved)
        for line in settings_without_effect(config):
            listen({"event": "warning", "message": line})
        cache = cache_dir(config)
        try:
            yield Context(
                run=run, resolved=resolved, cache=cache, clock=clock, listen=listen, lock=lock
            )
        except (UserError, PartitionError):
            if new and not run.complete_steps():
                run.clear(keep=there)
            raise


def _run_file(name: str, resolved: Resolved, created: str) -> dict[str, Any]:
    return {
        "name": name,
        "created": created,
        "identity": run_identity(resolved.config, dict(resolved.inputs)),
        "inputs": dict(resolved.inputs),
        "config": resolved.config.model_dump(),
        "versions": machine.versions(),
    }


def _same_run(run: RunFolder, resolved: Resolved) -> str:
    """When the run was created; refuses a recipe that it was not made from."""
    stored = run.read_run()
    changes = differences(stored["identity"], run_identity(resolved.config, dict(resolved.inputs)))
    if changes:
        named = _named(changes, differences(stored["config"], resolved.config.model_dump()))
        lines = "\n".join(f"  {line}" for line in named)
        raise RunExistsError(
            f"run {run.name} exists and was made from something else:\n{lines}\n"
            "give this one another name (--name), or undo the change"
        )
    created: str = stored["created"]
    return created


def _named(changes: list[str], settings: list[str]) -> list[str]:
    """Of the changed ``settings`` those that bear identity, with defaults; then changed inputs."""
    prefix = "settings."
    bearing = [c.removeprefix(prefix).split(":")[0] for c in changes if c.startswith(prefix)]

    def bears(line: str) -> bool:
        field = line.split(":", maxsplit=1)[0]
        return any(f"{field}.".startswith(f"{group}.") for group in bearing)

    return [*filter(bears, settings), *(c for c in changes if not c.startswith(prefix))]


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
