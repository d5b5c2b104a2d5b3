"""Tell what a run would do, by going through its chain where nothing may be executed.

This happens in a scratch folder whose nodes are links to those of the origin. Where a node would
have to be done, the origin's takes its place, so that the nodes after it can be asked too: they
have to be done if their own identity changes, and otherwise only if one of their inputs comes out
different.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sdpo.chain.context import Context
from sdpo.chain.node import EVERYTHING, Cached, Errand, Expansion, Look, Node, Part
from sdpo.chain.run_chain import chain
from sdpo.config import RunConfig
from sdpo.errors import IntegrityError
from sdpo.hooks import Host
from sdpo.inputs.resolve import cache_dir, resolve
from sdpo.store.links import adopt
from sdpo.store.origin import origin_chain
from sdpo.store.reuse import matching
from sdpo.store.run_file import Carried, Origin
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored

Action = Literal["REUSE", "RUN", "RUN IF"]

IF_DIFFERENT = "an earlier output differs"


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A line says what would become of a node.

    ``is_changed``: no origin has it with the same settings and inputs.
    """

    node: str
    action: Action
    reason: str = ""
    is_changed: bool = False


class _Unknown(Exception):
    """What comes next depends on something that is not there."""


@contextmanager
def dry_context(config: RunConfig, *, origin: Origin, carried: Carried | None) -> Iterator[Context]:
    """Yield the context of a new run with this origin, in a scratch folder that is then removed."""
    stored = read_stored(RunFolder(Path(origin.path)))
    resolved = resolve(config, known=stored.data_inputs)
    with tempfile.TemporaryDirectory(prefix="sdpo-") as folder:
        run = RunFolder(Path(folder) / config.name)
        run.path.mkdir()
        origins, _ = origin_chain(run, origin)
        yield Context(
            run=run,
            resolved=resolved,
            cache=cache_dir(config),
            clock=stored.clock,
            host=Host(),
            origin=origin,
            carried=carried,
            origins=tuple(origins),
        )


def dry_run(context: Context) -> list[NodeLine]:
    """Return a line for each node, in order."""
    run = DryRun(context)
    run.go_through(chain(context))
    return run.lines


@dataclass(slots=True)
class DryRun:
    """A dry run goes through a chain and executes nothing.

    ``open`` are the nodes whose result may differ from the origin's.
    """

    context: Context
    lines: list[NodeLine] = field(default_factory=list)
    open: set[str] = field(default_factory=set)

    def go_through(self, parts: Sequence[Part]) -> None:
        """Add lines for these parts; where one cannot be told, for what is foreseen of the rest."""
        for number, part in enumerate(parts):
            try:
                self._ask(part)
            except _Unknown:
                for rest in parts[number:]:
                    self._foresee(rest)
                return

    def _ask(self, part: Part) -> None:
        match part:
            case Node():
                self._node(part)
            case Cached():
                if fault := part.fault():
                    self._add(NodeLine(part.name, "RUN", fault))
                    raise _Unknown(part.name)
                self._add(NodeLine(part.name, "REUSE"))
            case Look():
                part.look()
            case Expansion():
                for each in part.expand():
                    self._ask(each)
            case Errand():
                pass

    def _add(self, line: NodeLine) -> None:
        self.lines.append(line)
        if line.action != "REUSE":
            self.open.add(line.node)

    def _foresee(self, part: Part) -> None:
        known = {line.node for line in self.lines}
        match part:
            case Node() | Cached():
                names: Sequence[str] = [part.name]
            case Expansion():
                names = part.foreseen() or [part.rule]
            case _:
                names = []
        for name in names:
            if name and name not in known:
                self._add(NodeLine(name, "RUN IF", IF_DIFFERENT))

    def _is_uncertain(self, part: Node | Cached) -> bool:
        """Return whether a node that this one reads would have to be done, or may have to."""
        return bool(self.open if EVERYTHING in part.inputs else self.open & set(part.inputs))

    def _node(self, node: Node) -> None:
        context, identity = self.context, node.identity()
        found = context.find(node.name, identity)
        if found.record and not self._is_uncertain(node):
            if node.is_told:
                self._add(NodeLine(node.name, "REUSE"))
            return
        if found.record:
            self.open.add(node.name)
            line = NodeLine(node.name, "RUN IF", IF_DIFFERENT)
        else:
            whole = [matching(origin, node.name, identity).record for origin in context.origins]
            line = NodeLine(node.name, "RUN", found.reason, is_changed=not any(whole))
        for part in node.first():
            self._first(part, line.action)
        if node.is_told or not found.record:
            self._add(line)
        if not found.record:
            self._stand_in(node)

    def _first(self, part: Part, action: Action) -> None:
        """Add a line for what is done before a node that would have to be done."""
        if not isinstance(part, Cached):
            return
        if fault := part.fault():
            self._add(NodeLine(part.name, action, fault))
        elif self._is_uncertain(part):
            self._add(NodeLine(part.name, "RUN IF", IF_DIFFERENT))
        else:
            self._add(NodeLine(part.name, "REUSE"))

    def _stand_in(self, node: Node) -> None:
        for origin in self.context.origins:
            try:
                record = origin.find(node.name)
            except IntegrityError:
                continue
            if record and not adopt(self.context.run, node.name, origin, record):
                return
        if not node.is_view:
            raise _Unknown(node.name)
