"""Define the words that a stage's head and its members on the nodes exchange: JSON, one a line."""

import hashlib
import hmac
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from sdpo.system.seen import ExpectedFile

PROTOCOL = 1
"""This is raised when a word gets another meaning."""
BEAT_S = 3.0
"""Each side says so often that it lives."""
SILENCE_S = 20.0
"""A side that says nothing for so long is lost."""
MOST_BYTES = 64 << 20
"""A line has so many bytes at most: a stage of 10^8 pairs names some 10^5 files of log-probs."""


class AnyWord(BaseModel):
    """All words have this in common: they are frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Challenge(AnyWord):
    """The head asks a member to prove that it sees the run's folder: ``token`` is a file in it."""

    word: Literal["challenge"] = "challenge"
    protocol: int
    token: Path
    nonce: str


class Hello(AnyWord):
    """A member says what its node is.

    ``proof`` is of the token's content and the head's nonce, empty where the token is not seen;
    ``nonce`` asks the head for the same. ``address`` is that of the node as the head's network
    has it. ``is_own``: the chain's machine has started it.
    """

    word: Literal["hello"] = "hello"
    host: str
    pid: int
    address: str
    proof: str
    nonce: str
    versions: dict[str, str]
    gpus: int
    is_own: bool


class Refused(AnyWord):
    """The head does not take a member, and says why."""

    word: Literal["refused"] = "refused"
    message: str


class Work(AnyWord):
    """The head takes a member: these are its stage and its place, and what it has to see before.

    ``node`` of ``nodes``, each with ``per_node`` processes. ``proof`` is the head's.
    """

    word: Literal["work"] = "work"
    proof: str
    spec: Path
    node: int
    nodes: int
    per_node: int
    files: list[ExpectedFile]


class Ready(AnyWord):
    """A member sees every file and holds its devices; ``port`` is one that is free there."""

    word: Literal["ready"] = "ready"
    port: int


class Start(AnyWord):
    """All members are ready: their processes find each other at the first node's address."""

    word: Literal["start"] = "start"
    address: str
    port: int


class Told(AnyWord):
    """A process of the stage told this event, or the member itself did."""

    word: Literal["told"] = "told"
    event: dict[str, JsonValue]


class Alive(AnyWord):
    """Whoever says it lives."""

    word: Literal["alive"] = "alive"


class Stop(AnyWord):
    """The head wants the processes to end; they may save a state."""

    word: Literal["stop"] = "stop"


class Ended(AnyWord):
    """The processes of a node have ended with this code, the first bad one of them.

    ``killed`` is the rank that a SIGKILL ended. ``why`` the member ended them itself, or could not
    start them; ``user``: by a mistake of who gave it its work. ``files`` are those that the stage
    has written, as the first node sees them.
    """

    word: Literal["ended"] = "ended"
    code: int
    killed: int | None = None
    why: str = ""
    user: bool = False
    files: list[ExpectedFile] = []


class Leaving(AnyWord):
    """A member was asked to end, or its job's ``time`` is up: the stage cannot go on with it."""

    word: Literal["leaving"] = "leaving"
    why: Literal["signal", "time"]


class Over(AnyWord):
    """The stage is over for all members."""

    word: Literal["over"] = "over"


Word = (
    Challenge
    | Hello
    | Refused
    | Work
    | Ready
    | Start
    | Told
    | Alive
    | Stop
    | Ended
    | Leaving
    | Over
)
_WORD: TypeAdapter[Word] = TypeAdapter(Annotated[Word, Field(discriminator="word")])


def word_of(line: bytes) -> Word:
    """Return the word in a line.

    Raises:
        ValidationError: it is none.
    """
    return _WORD.validate_json(line)


def proof_of(secret: str, nonce: str) -> str:
    """Return what only who has read ``secret`` can answer to ``nonce``."""
    return hmac.new(secret.encode(), nonce.encode(), hashlib.sha256).hexdigest()


def is_proof(given: str, *, secret: str, nonce: str) -> bool:
    """Return whether ``given`` answers ``nonce``."""
    return hmac.compare_digest(given, proof_of(secret, nonce))
