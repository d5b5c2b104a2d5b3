"""What a run would do, found by walking the chain itself where nothing may be executed.

The walk happens in a scratch folder whose nodes are links to those of the origin. A node that would
have to be done is stood in for by the origin's, so that what comes after it can be asked too: it
has to be done if it changes by itself, and otherwise only if an earlier output comes out different.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sdpo import nodes
from sdpo.chain import walk
from sdpo.config import RunConfig
from sdpo.errors import IntegrityError
from sdpo.events import Event
from sdpo.origin import Carried, Origin, origin_chain
from sdpo.resolve import cache_dir, resolve
from sdpo.run import Context, read_stored
from sdpo.sharing import adopt
from sdpo.spec import Spec
from sdpo.store import Record, RunFolder, matching

T = TypeVar("T")
Action = Literal["REUSE", "RUN", "RUN IF"]

IF_DIFFERENT = "an earlier output differs"


@dataclass(frozen=True, slots=True)
class NodeLine:
    """What would become of a node. ``is_changed``: its own settings or inputs are others."""

    node: str
    action: Action
    reason: str = ""
    is_changed: bool = False


class _Unknown(Exception):
    """What comes next depends on something that is not there."""


@dataclass(slots=True, kw_only=True)
class DryRun(Context):
    """A context that executes nothing and keeps a line for each node."""

    lines: list[NodeLine] = field(default_factory=list)

    @property
    def is_uncertain(self) -> bool:
        """Whether an earlier node would have to be done."""
        return any(line.action != "REUSE" for line in self.lines)

    def done(self, node: str, identity: Mapping[str, Any]) -> Record | None:
        """The node's record, or one that stands in for it."""
        uncertain = self.is_uncertain
        record, reason = self.find(node, identity)
        if record:
            line = NodeLine(node, "RUN IF", IF_DIFFERENT) if uncertain else NodeLine(node, "REUSE")
            self.lines.append(line)
            return record
        whole = [matching(origin, node, identity).record for origin in self.origins]
        self.lines.append(NodeLine(node, "RUN", reason, is_changed=not any(whole)))
        return self._stand_in(node)

    def _stand_in(self, node: str) -> Record:
        for origin in self.origins:
            try:
                record = origin.read_record(node)
            except IntegrityError:
                continue
            if record and not adopt(self.run, node, origin, record):
                return record
        raise _Unknown(node)

    def settle(self, record: Record) -> None:
        """Nothing is written."""

    def stage(self, spec: Spec, *locks: int) -> dict[str, Any]:
        """Nothing is executed; what the stage would have given is not known."""
        self.lines.append(NodeLine(spec.name, "RUN", "not measured yet"))
        raise _Unknown(spec.name)


@contextmanager
def dry_context(config: RunConfig, *, origin: Origin, carried: Carried | None) -> Iterator[DryRun]:
    """A dry run of a new run with this origin."""
    there = RunFolder(Path(origin.path))
    stored = read_stored(there)
    resolved = resolve(config, known=stored.data_inputs)
    with tempfile.TemporaryDirectory(prefix="sdpo-") as folder:
        run = RunFolder(Path(folder) / config.name)
        run.path.mkdir()
        origins, _ = origin_chain(run, origin)
        lines: list[NodeLine] = []

        def listen(event: Event) -> None:
            if event["event"] == "node" and event["node"] == "tokens":
                lines.append(NodeLine("tokens", "REUSE"))

        yield DryRun(
            run=run,
            resolved=resolved,
            cache=cache_dir(config),
            clock=stored.clock,
            listen=listen,
            origin=origin,
            carried=carried,
            origins=tuple(origins),
            lines=lines,
        )


def dry_run(context: DryRun) -> list[NodeLine]:
    """A line for each node, in order."""
    try:
        walk(context, call=_ask_tokens)
    except _Unknown:
        known = {line.node for line in context.lines}
        context.lines.extend(
            NodeLine(node, "RUN IF", IF_DIFFERENT)
            for node in _remaining(context)
            if node not in known
        )
    return context.lines


def _ask_tokens(_name: str, function: Callable[..., T], /, *args: object) -> T:
    """Call a node, but for tokenising what is not cached, which would write to the cache."""
    context = args[0]
    if function is nodes.tokenise and isinstance(context, DryRun):
        faults = [
            fault for path in nodes.token_paths(context) if (fault := nodes.token_fault(path))
        ]
        if faults:
            context.lines.append(NodeLine("tokens", "RUN", faults[0]))
            raise _Unknown("tokens")
    return function(*args)


def _remaining(context: DryRun) -> list[str]:
    """Nodes that the walk may not have reached, as far as the origin's plan tells."""
    for origin in context.origins:
        plan = None if origin.is_damaged("plan") else origin.read_record("plan")
        if plan:
            steps = range(1, plan["outputs"]["steps"] + 1)
            last = context.last_step
            wanted = [n for n in steps if last is None or n <= last]
            return ["reserve", "plan", *(f"step-{n}" for n in wanted), "report"]
    return []
