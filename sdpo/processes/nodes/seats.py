"""Know the members of a stage, each by its connection, and say what goes wrong with one."""

import secrets
import time
from dataclasses import dataclass, field

from sdpo.events import ErrorEvent
from sdpo.processes.nodes.line import Line, LineError
from sdpo.processes.nodes.outlook import Failed
from sdpo.processes.nodes.words import Ended, Hello, Ready, Word
from sdpo.processes.spec import Spec
from sdpo.processes.supervisor import USER_ERROR_EXIT


@dataclass(slots=True, kw_only=True)
class Seat:
    """A seat is a connection to a member: who it is once it said so, and how far it is."""

    line: Line
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    since_s: float = field(default_factory=time.monotonic)
    hello: Hello | None = None
    ready: Ready | None = None
    ended: Ended | None = None
    is_leaving: bool = False
    lost: str = ""

    @property
    def name(self) -> str:
        """Return what a person calls the node."""
        return f"node {self.hello.host}" if self.hello else "a node"

    @property
    def is_done(self) -> bool:
        """Return whether nothing of the stage runs there any more, as far as is known."""
        return self.ended is not None or bool(self.lost)

    def send(self, word: Word) -> None:
        """Send a word; who takes none is lost."""
        try:
            self.line.send(word)
        except LineError as error:
            self.lost = self.lost or str(error)


def place(seat: Seat) -> tuple[bool, str, str, int]:
    """Return what members are ordered by: the chain's own machine is the first node."""
    hello = seat.hello
    return (not hello.is_own, hello.host, hello.address, hello.pid) if hello else (True, "", "", 0)


def check_reach(members: list[Seat]) -> None:
    """Refuse a first node that the others cannot reach, since it comes by the loopback.

    Raises:
        Failed: it does.
    """
    hellos = [seat.hello for seat in members if seat.hello]
    on_loopback = [hello.address.startswith("127.") or hello.address == "::1" for hello in hellos]
    if any(on_loopback) and not all(on_loopback):
        message = (
            f"node {hellos[0].host} has met this run at {hellos[0].address}, where other nodes do "
            "not reach it: set launch.rendezvous to an address of this machine that they reach"
        )
        raise Failed(ErrorEvent(user=True, message=message), USER_ERROR_EXIT)


def loss(spec: Spec, seat: Seat, number: int) -> ErrorEvent:
    """Return the event that says that a node is lost."""
    return ErrorEvent(
        user=False,
        killed=True,
        message=f"{seat.name} (node {number} of this stage) is lost: "
        f"{seat.lost or 'its `sdpo node join` was asked to end'}. The other nodes have ended what "
        f"they ran; {spec.name} goes on from its last saved state",
    )


def failure(seat: Seat, ended: Ended) -> Failed:
    """Return the failure of a node's processes; what they told themselves says more."""
    code = ended.code if ended.code > 0 else 1
    if ended.why:
        return Failed(ErrorEvent(user=ended.user, message=f"{seat.name} {ended.why}"), code)
    if ended.killed is not None:
        message = (
            f"process {ended.killed} was killed from outside (SIGKILL) on {seat.name}: by "
            "somebody, or by the system for want of memory, which its log (dmesg) says then. Run "
            "again, and the step goes on from its last saved state"
        )
        return Failed(ErrorEvent(user=False, message=message, killed=True), code)
    return Failed(ErrorEvent(user=False, message=f"{seat.name} ended with {ended.code}"), code)
