"""Let a head and a member know each other: the same folder, the same versions, enough devices."""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sdpo
from sdpo.config import LaunchConfig
from sdpo.processes.nodes.line import Line, LineError
from sdpo.processes.nodes.words import (
    PROTOCOL,
    Challenge,
    Hello,
    Refused,
    Word,
    Work,
    is_proof,
    proof_of,
)
from sdpo.system import machine

_TOKEN_S = 30.0
"""A token that is not seen for so long is not in a folder that is shared."""
_ANSWER_S = 60.0
_MOST_BYTES = 1024
TOKEN_SUFFIX = ".nodes.json"
"""A head's token has such a name: a member reads no other file for a head that it does not know."""


def node_name() -> str:
    """Return what a person calls this node: as SLURM names it, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@cache
def node_versions() -> dict[str, str]:
    """Return the versions that all nodes of a stage have to share, this project's by its source."""
    versions = machine.versions()
    return {name: versions[name] for name in ("python", "torch", "transformers", "accelerate")} | {
        "sdpo": f"{versions['sdpo']} (source {_source_digest()})"
    }


def _source_digest() -> str:
    """Return the first digits of a digest of this project's Python files."""
    root = Path(sdpo.__file__).parent.parent
    digest = hashlib.sha256()
    for room in ("sdpo", "partitions"):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Meeting:
    """A member and a head know each other, and this is the member's work."""

    work: Work


def write_token(path: Path) -> str:
    """Write the file by which nodes prove that they see a folder, and return its secret."""
    secret = secrets.token_hex(32)
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"secret": secret}, file)
        file.flush()
        os.fsync(handle)
    return secret


def read_token(path: Path) -> str:
    """Return the secret in a token; empty where it is not seen, or is none."""
    if not path.name.endswith(TOKEN_SUFFIX):
        return ""
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError):
        return ""
    secret = told.get("secret") if isinstance(told, dict) else ""
    return secret if isinstance(secret, str) else ""


def met(
    line: Line, hear: Callable[[float | None], Word | None], *, address: str, is_own: bool
) -> Meeting | Refused:
    """Meet a head, as a member: prove what it asks for, and check that it knows the token too.

    ``hear`` returns the next word that comes within so many seconds.

    Raises:
        LineError: the head says something else, or nothing.
    """
    challenge = hear(None)
    if not isinstance(challenge, Challenge):
        raise LineError("the other side is no run that waits for nodes")
    if challenge.protocol != PROTOCOL:
        return Refused(message=f"the run's machine has another version of this project: {PROTOCOL}")
    end = time.monotonic() + _TOKEN_S
    while not (secret := read_token(challenge.token)) and time.monotonic() < end:
        if hear(0.2) is not None:
            raise LineError("the run does not wait any longer")
    nonce = secrets.token_hex(16)
    line.send(
        Hello(
            host=node_name(),
            pid=os.getpid(),
            address=address,
            proof=proof_of(secret, challenge.nonce) if secret else "",
            nonce=nonce,
            versions=node_versions(),
            gpus=len(machine.cuda_capabilities()),
            is_own=is_own,
        )
    )
    work = hear(None)
    if not isinstance(work, Work):
        raise LineError("the run does not wait any longer")
    if not secret or not is_proof(work.proof, secret=secret, nonce=nonce):
        return Refused(message="who listens there does not know the run's own folder")
    return Meeting(work)


def objection(hello: Hello, *, launch: LaunchConfig, token: Path, secret: str, nonce: str) -> str:
    """Return why a head does not take this member, naming it; empty: it does."""
    who = f"node {hello.host}"
    if not hello.proof:
        return (
            f"{who} does not see {token}: nodes need the run's folder, and what else the run "
            "reads, in a file system that all of them share under the same path"
        )
    if not is_proof(hello.proof, secret=secret, nonce=nonce):
        return f"{who} sees another {token.name} than the run's machine: it shares another folder"
    mine = node_versions()
    other = [
        f"{name} {hello.versions.get(name, 'absent')} there, {version} here"
        for name, version in mine.items()
        if hello.versions.get(name) != version
    ]
    if other:
        return f"{who} has other versions: {'; '.join(other)}. Install the same on all nodes"
    if launch.device == "cuda" and hello.gpus < launch.per_node:
        return (
            f"{who} has {hello.gpus} CUDA devices, and each node is to run {launch.per_node} "
            "processes (launch.processes divided by launch.nodes)"
        )
    return ""
