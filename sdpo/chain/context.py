"""Give every node of an open run what it needs, and tell whether a node's result stands."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sdpo.config import RunConfig
from sdpo.errors import LowMemoryError, UserError
from sdpo.events import Listener, ResultEvent, WarningEvent
from sdpo.hooks import Host
from sdpo.identity.payloads import changes
from sdpo.inputs.resolve import Resolved
from sdpo.processes.devices import hold_devices
from sdpo.processes.nodes.rendezvous import goes_to_nodes
from sdpo.processes.spec import Spec
from sdpo.processes.supervisor import run_stage
from sdpo.store.links import adopt
from sdpo.store.model_card import refresh_card
from sdpo.store.records import NodeRecord
from sdpo.store.resume_states import discard
from sdpo.store.reuse import NOT_DONE, matching, reuse
from sdpo.store.run_file import Carried, Origin
from sdpo.store.run_folder import RunFolder
from sdpo.system.json_values import JsonObject
from sdpo.system.locks import is_at


@dataclass(frozen=True, slots=True)
class Found:
    """A look for a node found this: its record if it stands, else None.

    ``reason`` says why the node does not stand, or which run it is shared from. ``is_shared``: it
    was taken over from an origin just now.
    """

    record: NodeRecord | None
    reason: str = ""
    is_shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A context holds what every node of an open run needs.

    ``clock`` is the time that chat templates see: that of the run's creation. ``origins`` are the
    runs that complete nodes are shared from, nearest first. ``host`` is who runs the chain.
    ``locks`` are the descriptors of the run's locks, which its stages hold as well, and
    ``rendezvous`` that of the socket to which other nodes come.
    """

    run: RunFolder
    resolved: Resolved
    cache: Path
    clock: str
    host: Host
    locks: tuple[int, ...] = ()
    rendezvous: int | None = None
    origin: Origin | None = None
    carried: Carried | None = None
    origins: tuple[RunFolder, ...] = ()

    @property
    def config(self) -> RunConfig:
        """Return the resolved recipe."""
        return self.resolved.config

    @property
    def listen(self) -> Listener:
        """Return the listener that hears of everything that happens."""
        return self.host.listen

    @property
    def replayed(self) -> str:
        """Return the node that is done again although an origin has it; empty: there is none."""
        is_replay = self.origin is not None and self.origin.kind == "replay"
        return f"step-{self.origin.step}" if self.origin and is_replay else ""

    @property
    def last_step(self) -> int | None:
        """Return the step after which the chain ends; None: after the plan's last."""
        return self.origin.step if self.origin and self.origin.only else None

    def check_in_place(self) -> None:
        """Check that the run's folder is where it was: its lock, which this process holds, is.

        What is written under the old name would begin another folder there.

        Raises:
            UserError: it was moved or removed.
        """
        if self.locks and not is_at(self.locks[0], self.run.lock_file):
            raise UserError(
                f"{self.run.path} was moved or removed while the run was at work. What was "
                "complete stands where the folder is now: `sdpo resume` with its new name goes on"
            )

    def find(self, node: str, identity: JsonObject) -> Found:
        """Return the node's record if it stands here or in an origin, which then shares it.

        Where it does not stand, the reason says why. A shared node has a reason too: the run it is
        shared from.
        """
        own = reuse(self.run, node, identity, explain=changes)
        if own.record:
            return Found(own.record)
        if node == self.replayed:
            again = own.reason == NOT_DONE
            return Found(None, self._replayed_with(identity) if again else own.reason)
        reasons = [own.reason]
        for origin in self.origins:
            there = matching(origin, node, identity, explain=changes)
            faults = adopt(self.run, node, origin, there.record) if there.record else []
            if there.record and not faults:
                record = self.run.find(node)
                return Found(record, f"shared from {origin.name}", is_shared=True)
            why = "" if self._is_grown(node) else there.reason
            reasons.append("; ".join(f"{origin.name}: {fault}" for fault in faults) or why)
        reasons = [reason for reason in reasons if reason]
        return Found(None, next((reason for reason in reasons if reason != NOT_DONE), NOT_DONE))

    def _replayed_with(self, identity: JsonObject) -> str:
        """Return the reason that a step is replayed, with what has changed in it."""
        found = [matching(o, self.replayed, identity, explain=changes) for o in self.origins[:1]]
        reasons = [there.reason for there in found if there.reason not in ("", NOT_DONE)]
        return " with ".join(["replayed", *reasons])

    def _is_grown(self, node: str) -> bool:
        """Return whether a node of an extended run differs from its origin's due to new data."""
        is_extended = self.origin is not None and self.origin.kind == "extend"
        return is_extended and not node.startswith(("step-", "guide-", "merged-"))

    def settle(self, node: str) -> None:
        """Bring a complete step or guide into its final form: card and lineage, no resume state.

        A process that died between record and tidying leaves a resume state behind.
        """
        folder, record = self.run.path / node, self.run.step_record(node)
        discard(folder)
        refresh_card(self.run, record, name=record.name, folder=folder / "model")

    def stage(self, spec: Spec, *locks: int) -> ResultEvent:
        """Run a stage, which holds the run's locks and ``locks`` as well, and return its result.

        Where one of several processes runs out of memory, the stage ends and is run again with
        less.
        """
        keep = (*self.locks, *locks)
        with self._devices(spec) as devices:
            while True:
                try:
                    return run_stage(
                        spec,
                        listen=self.listen,
                        keep=(*keep, *devices),
                        call=self.host.call,
                        rendezvous=self.rendezvous,
                    )
                except LowMemoryError as error:
                    self.listen(WarningEvent(message=f"{error}; it starts again"))

    def _devices(self, spec: Spec) -> AbstractContextManager[tuple[int, ...]]:
        if not spec.uses_device or goes_to_nodes(spec):  # each node holds its own
            return nullcontext(())
        return hold_devices(
            spec.launch, run=self.run.name, listen=self.listen, occupy=self.host.occupy
        )
