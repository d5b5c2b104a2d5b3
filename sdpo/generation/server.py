"""Start a server of a model, in an environment of its own, and leave nothing of it behind.

The command is the recipe's, permitted by the machine's owner. It gets no variable of this process
but those that every program needs, so no key of anybody; a home of its own; and a folder of the
model in which nothing says that other tokens are to be drawn than the model's own distribution has.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from pydantic import ValidationError

from sdpo.errors import Fault, UserError
from sdpo.generation.completions_client import Listed, Models
from sdpo.inputs.servers import refuse_unpermitted
from sdpo.system.files import write_json
from sdpo.system.keeper import GRACE_S, Kept
from sdpo.system.permissions import serve_variables
from sdpo.system.watchdog import MARK

_NEEDED = (
    *("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", MARK, "OMP_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_POLL_S = 0.1
_TRIES = int(2 * GRACE_S / _POLL_S)
"""What a dead server has left behind is ended first, and may take the keeper's grace."""
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server serves ``model`` at ``url``; ``name`` and ``version`` are what it calls itself."""

    url: str
    model: str
    name: str
    version: str
    kept: Kept

    def why_gone(self) -> str:
        """Return how it ended; "" while it runs."""
        return _ending(self.kept, tries=_TRIES)


@contextmanager
def served(
    command: Sequence[str],
    *,
    folder: Path,
    ends: Sequence[int],
    vocabulary: int,
    scratch: Path,
    ready_s: float,
) -> Iterator[Server]:
    """Serve the model in ``folder`` while within; ``ends``: tokens after which a sample stops.

    ``scratch``: an empty folder for what the server needs.

    Raises:
        ConfigError: the command is not permitted.
        UserError: the server ends, or does not serve the model within ``ready_s`` seconds.
    """
    refuse_unpermitted(command)
    model, home = scratch / "model", scratch / "home"
    home.mkdir()
    _link_model(folder, model, ends=ends, vocabulary=vocabulary)
    port = _free_port()
    filled = [each.replace("{model}", str(model)).replace("{port}", str(port)) for each in command]
    kept = Kept(filled, environment=_environment(home), folder=home)
    try:
        yield _ready(kept, filled, model=model, port=port, ready_s=ready_s)
    finally:
        kept.end()


def _link_model(folder: Path, into: Path, *, ends: Sequence[int], vocabulary: int) -> None:
    """Make a folder with links to a model's files, and neutral defaults of sampling.

    A model's own may have a repetition penalty or a top-k, which a request cannot take back on
    every server. ``top_k`` is the whole vocabulary, since no other number is neutral everywhere.
    """
    into.mkdir()
    for path in folder.iterdir():
        if path.name != "generation_config.json":
            (into / path.name).symlink_to(path.resolve())
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": vocabulary, "repetition_penalty": 1.0}
    told = {"eos_token_id": list(ends)} if ends else {}
    write_json(into / "generation_config.json", {"do_sample": True, **neutral, **told})


def _environment(home: Path) -> dict[str, str]:
    """Return the variables of a server: what programs need, and what the owner has named."""
    names = {*_NEEDED, *serve_variables()}
    own = {name: os.environ[name] for name in names if name in os.environ}
    return {"HOME": str(home), **_OFFLINE, **own}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(kept: Kept, command: Sequence[str], *, model: Path, port: int, ready_s: float) -> Server:
    """Wait until the server serves, and return what it says of itself."""
    until = time.monotonic() + ready_s
    base = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=base, timeout=10.0) as client:
        while not _is_healthy(client):
            if how := _ending(kept):
                raise UserError(
                    f"the server {command[0]} ended before it served: {how}. The stage's log has "
                    "what it said"
                )
            if time.monotonic() > until:
                raise UserError(
                    f"the server {command[0]} did not serve at {base} within {ready_s:g} s "
                    "(generate.serve_ready_s): the stage's log has what it said. Does it listen on "
                    "{port}?"
                )
            time.sleep(_POLL_S)
        _check_port(kept, port)
        return Server(
            url=f"{base}/v1/",
            **_said_of_itself(client, _called(command), model),
            kept=kept,
        )


def _is_healthy(client: httpx.Client) -> bool:
    try:
        reply = client.get("/health")
        if reply.status_code == httpx.codes.NOT_FOUND:
            reply = client.get("/v1/models")
    except httpx.HTTPError:
        return False
    return reply.status_code == httpx.codes.OK


def _ending(kept: Kept, *, tries: int = 1) -> str:
    """Return how a server ended, or "": after a broken connection it may take a moment."""
    for _ in range(tries):
        code = kept.ended()
        if code is not None:
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        time.sleep(_POLL_S if tries > 1 else 0)
    return ""


def _check_port(kept: Kept, port: int) -> None:
    """Refuse a server on the port that is not the one that was started.

    Raises:
        Fault: another process listens there.
    """
    for process in kept.processes():
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in connections):
            return
    raise Fault(
        f"port {port} is answered by a process that generate.serve has not started: another "
        "program took it, or the command starts a server outside of its own processes. Run the "
        "same again; a command that hands over to a daemon cannot be used"
    )


def _called(command: Sequence[str]) -> str:
    """Return what a command starts: its program, or the module that Python is to run."""
    at = command.index("-m") + 1 if "-m" in command[:-1] else 0
    return Path(command[at]).name


def _said_of_itself(client: httpx.Client, program: str, model: Path) -> dict[str, str]:
    """Return the server's name and version, and its name for the model.

    Raises:
        UserError: it says that it serves another model.
    """
    models = _listed(client)
    own = [each for each in models if str(model) in (each.id, each.root)]
    if others := [each for each in models if each.root and each.root != str(model)]:
        raise UserError(
            f"the server {program} says that it serves {others[0].root}, not the model that it was "
            "started for: put {model} where its command has the model (generate.serve)"
        )
    chosen = own or (models if len(models) == 1 else [])
    name = next((each.owned_by for each in chosen if each.owned_by), "") or program
    return {
        "model": chosen[0].id if chosen else str(model),
        "name": name,
        "version": _version(client),
    }


def _listed(client: httpx.Client) -> Sequence[Listed]:
    try:
        return Models.model_validate_json(client.get("/v1/models").content).data
    except (httpx.HTTPError, ValidationError):
        return []


def _version(client: httpx.Client) -> str:
    """Return what the server answers at /version, where vLLM and others tell it."""
    try:
        reply = client.get("/version")
        said = reply.json() if reply.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return _UNKNOWN
    version = said.get("version") if isinstance(said, dict) else said
    return version[:100] if isinstance(version, str) and version else _UNKNOWN
