"""Know the server at a desk: its processes, its password, and how it is asked.

What was started is written down with the time of its start: a process id alone could be somebody
else's by now.
"""

import base64
import json
import os
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from sdpo.errors import IntegrityError, UserError
from sdpo.system.files import read_json, write_json
from sdpo.system.nearby import did_you_mean
from sdpo.system.own_modules import module_path

FOLDER = Path(".sdpo-server")
OK = HTTPStatus.OK
AUTH = "PREFECT_SERVER_API_AUTH_STRING"
"""This environment variable holds a `user:password` of the user's own; without it one is made."""
CLIENT_AUTH = "PREFECT_API_AUTH_STRING"
PASSWORD = "password"
"""This file in a server's folder holds the `user:password` that was made."""

_NO_TELEMETRY = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started here is known by its id and its start, in seconds of the epoch."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "Started":
        """Return the process that has this id now.

        Raises:
            psutil.NoSuchProcess: none has it.
        """
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def process(self) -> psutil.Process | None:
        """Return the process if it still runs; None where it has ended, or another has its id."""
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.started
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True, slots=True)
class Desk:
    """A desk is what a server's folder says of the server and worker that were started from it."""

    folder: Path
    url: str = ""
    asks: bool = False
    """This says whether the server asks for a password; those of versions before 0.2 did not."""
    server: Started | None = None
    worker: Started | None = None

    @classmethod
    def read(cls, folder: Path) -> "Desk":
        """Return what is written down in ``folder``; without processes where nothing was started.

        Raises:
            IntegrityError: something else is written there.
        """
        path = folder / "processes.json"
        if not path.is_file():
            return cls(folder)
        content = read_json(path)
        try:
            return _DESK.validate_python({**content, "folder": folder})
        except (TypeError, ValueError) as error:
            raise IntegrityError(
                f"{path} does not say what runs here: it was not written by `sdpo server up`. "
                "Name another folder (--folder)"
            ) from error

    def write(self) -> None:
        """Write the desk to ``processes.json`` in its folder."""
        content = {
            "url": self.url,
            "asks": self.asks,
            "server": asdict(self.server) if self.server else None,
            "worker": asdict(self.worker) if self.worker else None,
        }
        write_json(self.folder / "processes.json", content)

    @property
    def credentials(self) -> str:
        """Return the `user:password` that clients send; empty where the server asks for none.

        Raises:
            UserError: the password is gone.
        """
        return credentials(self.folder) if self.asks else ""

    @property
    def running(self) -> dict[str, psutil.Process]:
        """Return the processes that still run, by role: ``server``, ``worker``."""
        found = {"server": self.server, "worker": self.worker}
        return {
            role: process
            for role, started in found.items()
            if started and (process := started.process)
        }


_DESK = TypeAdapter(Desk)


def credentials(folder: Path) -> str:
    """Return the `user:password` that is asked for: the environment's, or what the folder keeps.

    Raises:
        UserError: there is neither, or what there is has another form.
    """
    if AUTH in os.environ:
        user, _, password = os.environ[AUTH].partition(":")
        if not user or not password:
            raise UserError(f"{AUTH}: write it as user:password, or unset it")
        return os.environ[AUTH]
    path = folder / PASSWORD
    if not path.is_file():
        raise UserError(
            f"{path} is not there: the server of {folder} was started with a password of "
            f"{AUTH}; set it to the same again{did_you_mean(folder)}"
        )
    kept = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[!-~]+:[!-~]+", kept):
        raise UserError(
            f"{path} holds no password (user:password): put the original back, or name another "
            "folder (--folder)"
        )
    return kept


def make_password(folder: Path) -> None:
    """Make a password where there is none, in a file that only its owner can ever read."""
    if AUTH in os.environ or (folder / PASSWORD).exists():
        return
    descriptor = os.open(folder / PASSWORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"sdpo:{secrets.token_urlsafe(24)}\n")


def environment(folder: Path, url: str, auth: str) -> dict[str, str]:
    """Return the environment in which Prefect's commands talk to this server and to nobody else."""
    hidden = ("PREFECT_PROFILE", AUTH, CLIENT_AUTH)
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    made = kept | _NO_TELEMETRY | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_URL": url,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3"),
        "PREFECT_CLI_PROMPT": "false",
    } | module_path()  # fmt: skip
    return made | ({AUTH: auth, CLIENT_AUTH: auth} if auth else {})


def ask(url: str, auth: str = "") -> tuple[int, bytes]:
    """Return the status code of a GET and, unless it is an error, the content; 0: no answer."""
    headers = {}
    if auth:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as got:
            return int(got.status), got.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def running_desk(folder: Path) -> Desk:
    """Return the desk of a folder whose server runs.

    Raises:
        UserError: none runs.
    """
    desk = Desk.read(folder.absolute())
    if "server" not in desk.running:
        raise UserError(
            f"no server runs that was started from {folder} (sdpo server up){did_you_mean(folder)}"
        )
    return desk


def form_url(desk: Desk, deployment: str, parameters: dict[str, object]) -> str:
    """Return the address of the form of a deployment, filled with ``parameters``.

    Raises:
        UserError: the server has no such deployment, or has another password.
    """
    code, content = ask(f"{desk.url}/api/deployments/name/{deployment}", desk.credentials)
    if code != OK:
        raise UserError(f"the server at {desk.url} has no form of a run (it said {code})")
    query = urllib.parse.urlencode({"parameters": json.dumps(parameters)})
    return f"{desk.url}/deployments/deployment/{json.loads(content)['id']}/run?{query}"
