"""A Prefect server, a worker and the deployments for a person at a desk: ``sdpo server``.

Everything that Prefect keeps lies in one folder, so that nothing of the user's own profile is read
or changed. What was started is written down with the time of its start: a process id alone could
be somebody else's by now.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

import psutil
import yaml
from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape

from sdpo.config import RunConfig
from sdpo.errors import Fault, IntegrityError, UserError
from sdpo.system import ownership
from sdpo.system.files import read_json, write_json, write_text
from sdpo.system.interrupts import GRACE_S
from sdpo.system.locks import hold

POOL = "sdpo"
OK, NOT_FOUND = HTTPStatus.OK, HTTPStatus.NOT_FOUND
FOLDER = Path(".sdpo-server")
HOST, PORT = "127.0.0.1", 4200
AUTH = "PREFECT_SERVER_API_AUTH_STRING"
"""Environment variable with `user:password`; set, the server asks everybody for it."""

_START_S = 120.0
_STOP_S = {"worker": 45.0, "server": 15.0}
"""How long each may take to end; a worker first ends what it runs, which may save its state."""
_IGNORED = "*\n"
"""In ``.gitignore``: nothing of the folder belongs in a repository."""
_NAMES = {
    *(".gitignore", ".lock", "processes.json", "prefect"),
    *("server.log", "worker.log", "deploy.log"),
}
_NO_TELEMETRY = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started here."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "Started":
        """The process of this id, as it is now."""
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def process(self) -> psutil.Process | None:
        """It, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.started
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True, slots=True)
class Desk:
    """What is kept in the folder about what was started."""

    folder: Path
    url: str = ""
    server: Started | None = None
    worker: Started | None = None

    @classmethod
    def read(cls, folder: Path) -> "Desk":
        """What is written down; nothing where nothing was started.

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
        """Write it down."""
        content = {
            "url": self.url,
            "server": asdict(self.server) if self.server else None,
            "worker": asdict(self.worker) if self.worker else None,
        }
        write_json(self.folder / "processes.json", content)

    @property
    def running(self) -> dict[str, psutil.Process]:
        """What of it runs."""
        found = {"server": self.server, "worker": self.worker}
        return {
            role: process
            for role, started in found.items()
            if started and (process := started.process)
        }


_DESK = TypeAdapter(Desk)


def up(*, host: str, port: int, folder: Path, console: Console) -> str:
    """Start what does not run yet, deploy, and return the UI's address.

    Raises:
        ForeignFolderError: the folder is something else.
        UserError: the port is in use, or the deployments are not here.
        Fault: the server, the worker or the deployment failed; the message names the log.
    """
    project = _project()
    folder = folder.absolute()
    ownership.claim(folder, "server", proof=_is_proven)
    write_text(folder / ".gitignore", _IGNORED)
    with hold(folder / ownership.LOCK, what=f"the server in {folder}"):
        desk = Desk.read(folder)
        url = f"http://{host}:{port}"
        if "server" in desk.running:
            if desk.url != url:
                raise UserError(
                    f"the server of {folder} runs at {desk.url}: stop it first (sdpo server down)"
                )
        else:
            _check_free(host, port)
            desk = Desk(folder, url, _start_server(folder, host, port, url), desk.worker)
            desk.write()
            console.print("server: started", highlight=False)
        _wait_for(url, desk)
        _deploy(folder, project, url, console)
        if "worker" not in desk.running:
            desk = Desk(folder, url, desk.server, _start_worker(folder, project, url))
            desk.write()
            console.print("worker: started", highlight=False)
    return url


def down(*, folder: Path, console: Console) -> None:
    """Stop what :func:`up` started: the worker first, which ends what it runs."""
    folder = folder.absolute()
    if not folder.is_dir():
        console.print(
            f"nothing was started from {escape(str(folder))}", highlight=False, soft_wrap=True
        )
        return
    ownership.check(folder, "server", proof=_is_proven)
    with hold(folder / ownership.LOCK, what=f"the server in {folder}"):
        desk = Desk.read(folder)
        running = desk.running
        for role in ("worker", "server"):
            if role in running:
                _stop(running[role], timeout_s=_STOP_S[role])
                console.print(f"{role}: stopped", highlight=False)
        if not running:
            console.print("nothing was running", highlight=False)
        (folder / "processes.json").unlink(missing_ok=True)


def status(*, folder: Path, console: Console) -> int:
    """Say what runs; 0 where the server answers and the worker runs, else 1."""
    desk = Desk.read(folder.absolute())
    running = desk.running
    for role in ("server", "worker"):
        process = running.get(role)
        how = f"runs (process {process.pid})" if process else "does not run"
        console.print(f"{role}: {how}", highlight=False)
    if "server" not in running:
        return 1
    answers = _is_healthy(desk.url)
    console.print(f"UI: {desk.url}" if answers else f"{desk.url} does not answer", highlight=False)
    return 0 if answers and "worker" in running else 1


def form_address(config: RunConfig, *, folder: Path) -> str:
    """Address of the form of a run, filled with what a recipe gives.

    Raises:
        UserError: the server does not run, or asks for another password.
    """
    desk = Desk.read(folder.absolute())
    if "server" not in desk.running:
        raise UserError(f"no server runs that was started from {folder}: sdpo server up")
    code, content = _ask(f"{desk.url}/api/deployments/name/sdpo-align/align")
    if code != OK:
        raise UserError(f"the server at {desk.url} has no form of a run (it said {code})")
    given = config.model_dump(mode="json", exclude_unset=True)
    query = urllib.parse.urlencode({"parameters": json.dumps(given)})
    return f"{desk.url}/deployments/deployment/{json.loads(content)['id']}/run?{query}"


def environment(folder: Path, url: str) -> dict[str, str]:
    """Environment in which Prefect's commands talk to this server and to nobody else."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_PROFILE"}
    made = kept | _NO_TELEMETRY | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3"),
        "PREFECT_CLI_PROMPT": "false",
    }  # fmt: skip
    if auth := os.environ.get(AUTH):
        made["PREFECT_API_AUTH_STRING"] = auth
    return made


def _is_proven(folder: Path) -> bool:
    """Whether a folder is a server's of before there were markers."""
    ignore = folder / ".gitignore"
    ignores = ignore.is_file() and ignore.read_text(encoding="utf-8", errors="replace") == _IGNORED
    return ignores and {path.name for path in folder.iterdir()} <= _NAMES


def _project() -> Path:
    """The folder with prefect.yaml: this one, or that of the checkout."""
    for folder in (Path.cwd(), Path(__file__).absolute().parents[2]):
        if (folder / "prefect.yaml").is_file():
            return folder
    raise UserError("there is no prefect.yaml in this folder: call it where the project is")


def _check_free(host: str, port: int) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be used ({os.strerror(error.errno or 0)}): choose another "
                "with --port, or stop what uses it"
            ) from error


def _start(folder: Path, role: str, arguments: list[str], *, url: str, cwd: Path) -> Started:
    with (folder / f"{role}.log").open("ab") as log, _interruptible():
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal is not for it
            env=environment(folder, url),
            cwd=cwd,
        )
    return Started.of(process.pid)


@contextmanager
def _interruptible() -> Iterator[None]:
    """What is started here heeds SIGINT, by which Prefect's worker ends: a shell that starts a
    command in the background lets it ignore that, and all that it starts."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start_server(folder: Path, host: str, port: int, url: str) -> Started:
    arguments = ["server", "start", "--host", host, "--port", str(port)]
    return _start(folder, "server", arguments, url=url, cwd=folder)


def _start_worker(folder: Path, project: Path, url: str) -> Started:
    arguments = ["worker", "start", "--pool", POOL, "--type", "process"]
    return _start(folder, "worker", arguments, url=url, cwd=project)


def _wait_for(url: str, desk: Desk) -> None:
    log = desk.folder / "server.log"
    _until(lambda: _is_healthy(url), lambda: "server" in desk.running, what="server", log=log)
    if not _may_use(url):
        raise UserError(f"the server at {url} asks for another password than {AUTH} has")


def _until(
    happened: Callable[[], bool], alive: Callable[[], bool], *, what: str, log: Path
) -> None:
    end = time.monotonic() + _START_S
    while not happened():
        if not alive() or time.monotonic() > end:
            raise Fault(f"the {what} did not start{_last_line(log)} (log: {log})")
        time.sleep(0.2)


def _is_healthy(url: str) -> bool:
    return _ask(f"{url}/api/health")[0] == OK


def _may_use(url: str) -> bool:
    return _ask(f"{url}/api/version")[0] == OK


def _ask(url: str) -> tuple[int, bytes]:
    """Status code and content of an answer, with the password that is set; 0 without an answer."""
    headers = _authorization(os.environ)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as got:
            return int(got.status), got.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def _authorization(environment: Mapping[str, str]) -> dict[str, str]:
    auth = environment.get(AUTH, "")
    encoded = base64.b64encode(auth.encode()).decode()
    return {"Authorization": f"Basic {encoded}"} if auth else {}


def _deploy(folder: Path, project: Path, url: str, console: Console) -> None:
    """The pool, if it is not there, and the deployments of prefect.yaml."""
    pool = ["work-pool", "create", POOL, "--type", "process"]
    if _ask(f"{url}/api/work_pools/{POOL}")[0] == NOT_FOUND:
        _call(pool, folder, project, url)
    _call(["deploy", "--all"], folder, project, url)
    console.print(f"deployed: {', '.join(_deployments(project))}", highlight=False)


def _deployments(project: Path) -> list[str]:
    content = yaml.safe_load((project / "prefect.yaml").read_text(encoding="utf-8"))
    return [entry["name"] for entry in content["deployments"]]


def _call(arguments: list[str], folder: Path, project: Path, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(folder, url),
        cwd=project,
        check=False,
    )
    log = folder / "deploy.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        raise Fault(f"prefect {' '.join(arguments)} failed{_last_line(log)} (log: {log})")


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _stop(process: psutil.Process, *, timeout_s: float) -> None:
    """End a process and what it started, with time to do it well."""
    family = [process, *process.children(recursive=True)]
    _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=timeout_s)
    for member in alive:
        _signal(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(alive, timeout=GRACE_S)
    for member in alive:
        _signal(member, signal.SIGKILL)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
