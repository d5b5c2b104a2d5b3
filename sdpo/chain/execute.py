"""Go through a chain and do what is not done yet, saying why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sdpo.chain.context import Context, Found
from sdpo.chain.node import Cached, Errand, Expansion, Identity, Look, Node, Part
from sdpo.events import NodeEvent
from sdpo.store.kl_cache import NOT_CACHED
from sdpo.store.reuse import NOT_DONE
from sdpo.system.json_values import Json
from sdpo.system.locks import hold


def execute(context: Context, parts: Sequence[Part]) -> "Execution":
    """Do these parts of a chain, one after the other, and return what had to be done.

    Raises:
        UserError: a part cannot be done with what the recipe names.
        Fault: a stage failed; everything published before stands.
    """
    execution = Execution(context)
    execution.run(parts)
    return execution


@dataclass(slots=True)
class Execution:
    """An execution goes through a chain and does what is not done yet.

    ``executed`` are the nodes that had to be done, in order; ``shared`` those that came from an
    origin.
    """

    context: Context
    executed: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    _first: set[str] = field(default_factory=set)
    """These were done for the first time: what is cached of them is not made again either."""

    def run(self, parts: Sequence[Part]) -> None:
        """Do these parts; those with a title are called by the host."""
        for part in parts:
            if part.title:
                self.context.host.call(part.title, Execution.do, self, part)
            else:
                self.do(part)

    def do(self, part: Part) -> None:
        """Do a part, unless it is a result that stands.

        Raises:
            UserError: the run's folder was moved meanwhile.
        """
        self.context.check_in_place()
        match part:
            case Node():
                self._node(part)
            case Cached():
                self._cached(part)
            case Look():
                part.look()
            case Errand():
                part.do()
            case Expansion():
                self.run(part.expand())

    def find(self, node: Node) -> Found:
        """Return whether a node stands: here, or in an origin, which then shares it."""
        return self._find(node, node.identity())

    def _find(self, node: Node, identity: Identity) -> Found:
        found = self.context.find(node.name, identity)
        if found.is_shared:
            self.shared.append(node.name)
        return found

    def _node(self, node: Node) -> None:
        identity = node.identity()
        found = self._find(node, identity)
        if found.record:
            if node.is_told:
                self._tell(node.name, "reuse", found.reason)
            return
        if found.reason == NOT_DONE:
            self._first.add(node.name)
        never = found.reason == NOT_DONE and not node.is_told
        self._tell(node.name, "run", "not measured yet" if never else found.reason)
        self.run(node.first())
        made = node.make(self.find)
        if made is not None:
            record: dict[str, Json] = {"node": node.name, "identity": dict(identity)}
            if made.outputs is not None:
                record["outputs"] = dict(made.outputs)
            self.context.run.write_record(node.name, record, files=made.files)

    def _cached(self, node: Cached) -> None:
        fault = node.fault()
        if not fault:
            self._tell(node.name, "reuse", "")
        elif node.lock is None:
            self._tell(node.name, "run", self._why(node, fault))
            node.make(())
        else:
            # Another run may be making the same: then this one waits and finds it.
            with hold(node.lock, what=node.what, wait=True, listen=self.context.listen) as handle:
                fault = node.fault()
                self._tell(node.name, "run" if fault else "reuse", self._why(node, fault))
                if fault:
                    node.make((handle,))
                node.lock.unlink(missing_ok=True)

    def _why(self, node: Cached, fault: str) -> str:
        """Return why the cache does not serve; what is cached of a new input never did."""
        is_new = fault == NOT_CACHED and not self._first.isdisjoint(node.inputs)
        return NOT_DONE if is_new else fault

    def _tell(self, node: str, status: Literal["run", "reuse"], reason: str) -> None:
        self.context.listen(NodeEvent(node=node, status=status, reason=reason))
        if status == "run":
            self.executed.append(node)
