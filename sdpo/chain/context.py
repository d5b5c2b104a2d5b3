"""What every node of an open run gets, and the one way to do a node only once."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo.config import RunConfig
from sdpo.errors import LowMemoryError
from sdpo.events import Listener
from sdpo.hooks import Call, Occupy, plain_call, unlimited
from sdpo.identity.payloads import changes
from sdpo.inputs.resolve import Resolved
from sdpo.processes.devices import hold_devices
from sdpo.processes.stage_specs import Spec
from sdpo.processes.supervisor import run_stage
from sdpo.store.links import adopt
from sdpo.store.model_card import refresh_card
from sdpo.store.origin import Carried, Origin
from sdpo.store.resume_states import discard
from sdpo.store.reuse import NOT_DONE, matching, reuse
from sdpo.store.run_folder import Record, RunFolder

Outcome = tuple[dict[str, Any], list[Path]]


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
