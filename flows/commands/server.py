"""Run ``sdpo server``: a Prefect server, a worker and the deployments for a person at a desk.

Everything that Prefect keeps is in one folder, so that nothing of the user's own profile is read or
changed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape

from flows.commands.desk import (
    AUTH,
    OK,
    PASSWORD,
    Desk,
    Started,
    ask,
    credentials,
    environment,
    form_url,
    make_password,
    running_desk,
)
from flows.commands.server_address import check_free, check_open, reached_at
from flows.server.guard import bracketed
from sdpo.config import RunConfig, StoreConfig
from sdpo.errors import Fault, ForeignFolderError, UserError
from sdpo.system import ownership
from sdpo.system.files import temporary_path, write_text
from sdpo.system.interrupts import GRACE_S
from sdpo.system.locks import hold

POOL = "sdpo"
_START_S = 120.0
_STOP_S = {"worker": 45.0, "server": 15.0}
"""Each may take so long to end; a worker first ends what it runs, which may save its state."""
_PLACES = {"path", "name_or_path", "reference_model", "chat_template", "cache_dir"}
"""These settings may name files, where they are not the name on a hub or the text itself."""
_IGNORED = "*\n"
"""The folder's ``.gitignore`` holds this: nothing of the folder belongs in a repository."""
_NAMES = {
    *(".gitignore", ".lock", "processes.json", "prefect", PASSWORD),
    *("server.log", "worker.log", "deploy.log"),
}
RUNS = "runs"
"""In a server's folder: a link to the runs whose reports it serves."""
_OF_A_SERVER = {"prefect", "processes.json"}
"""One of these is there where a server has run; logs and a ``.gitignore`` many folders have."""


def up(
    *,
    host: str,
    port: int,
    folder: Path,
    console: Console,
    hosts: Sequence[str] = (),
    asks: bool = True,
    reset_schedules: bool = False,
) -> str:
    """Start what does not run yet, deploy, and return the UI's address.

    Args:
        host: address to listen at.
        port: port to listen at.
        folder: where everything is kept.
        console: where what was started is printed.
        hosts: further names that the server is known by.
        asks: whether the server asks for a password.
        reset_schedules: undo what was set of schedules and parameters.

    Raises:
        ForeignFolderError: the folder is something else.
        UserError: the port is in use; this folder's server runs at another address, or with another
            choice about the password; other machines could reach a server without a password.
        Fault: the server or the deployment failed; the message names the log.
    """
    check_open(host, hosts, asks=asks)
    folder, here = folder.absolute(), Path.cwd()
    ownership.claim(folder, "server", proof=_is_proven)
    _check_begun(folder)
    folder.chmod(0o700)  # parameters and logs of runs are in it
    if not (folder / ".gitignore").exists():
        write_text(folder / ".gitignore", _IGNORED)
    with hold(folder / ownership.LOCK, what=f"the server in {folder}"):
        desk = Desk.read(folder)
        url = f"http://{bracketed(reached_at(host))}:{port}"
        if "server" in desk.running:
            _check_same(desk, url, asks=asks)
        else:
            check_free(host, port)
        _point_at(desk.folder / RUNS, _runs_of(here))
        if "server" not in desk.running:
            if asks:
                make_password(folder)
            desk = Desk(folder, url, asks, worker=desk.worker)
            desk = replace(desk, server=_start_server(desk, host, port, hosts))
            desk.write()
            console.print("server: started", highlight=False)
        _wait_for(desk)
        _deploy(desk, here, console, reset_schedules=reset_schedules)
        if "worker" not in desk.running:
            desk = replace(desk, worker=_start_worker(desk, here))
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
    """Print what runs; return 0 where the server answers and the worker runs, else 1."""
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


def password(*, folder: Path) -> str:
    """Return the `user:password` that the UI and other clients of the server are asked for.

    Raises:
        UserError: the server asks for none, or it is not known here.
    """
    folder = folder.absolute()
    ownership.check(folder, "server", proof=_is_proven)
    desk = Desk.read(folder)
    if "server" in desk.running and not desk.asks:
        raise UserError(f"the server at {desk.url} asks for no password")
    return credentials(folder)


def form_address(config: RunConfig, *, folder: Path) -> str:
    """Return the address of the form of a run, filled with what a recipe gives.

    Raises:
        UserError: the server does not run, has no form of a run, or asks for another password.
    """
    given = _with_absolute_places(config.model_dump(mode="json", exclude_unset=True))
    runs = Path(config.store.runs_dir).expanduser().absolute()
    given["store"] = {**given.get("store", {}), "runs_dir": str(runs)}
    return form_url(running_desk(folder), "sdpo-align-full/align-full", given)


def _with_absolute_places(value: Any, name: str = "") -> Any:
    """Return settings with absolute paths: relative ones would mean other files at the worker."""
    if isinstance(value, dict):
        return {key: _with_absolute_places(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_absolute_places(each, name) for each in value]
    if name not in _PLACES or not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    try:
        return str(path.absolute()) if name == "cache_dir" or path.exists() else value
    except OSError:  # a template's own text is longer than any name
        return value


def _is_proven(folder: Path) -> bool:
    """Whether a folder is a server's of before there were markers."""
    names = {path.name for path in folder.iterdir()}
    return _ignores_all(folder) and names <= _NAMES and bool(names & _OF_A_SERVER)


def _ignores_all(folder: Path) -> bool:
    path = folder / ".gitignore"
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == _IGNORED


def _check_begun(folder: Path) -> None:
    """Refuse a marked folder in which no server has run, with more in it than of a first start.

    A marker can be copied to where somebody's own files are.

    Raises:
        ForeignFolderError: it is such a folder; what is there is named.
    """
    names = {path.name for path in folder.iterdir()}
    known = {ownership.MARKER, ownership.LOCK, PASSWORD, "processes.json", "lost+found"}
    known |= {".gitignore", "server.log"} if _ignores_all(folder) else set()
    known |= {RUNS} if (folder / RUNS).is_symlink() else set()
    if not (folder / "prefect").is_dir() and (others := sorted(names - known)):
        raise ForeignFolderError(
            f"{folder} has the marker of a server's folder, and no server has run in it; it holds "
            f"{', '.join(others)}: nothing in it is touched. Name another folder (--folder)"
        )


def _runs_of(here: Path) -> Path:
    """Return where the runs of the deployments are, unless a run names another folder."""
    return here / StoreConfig().runs_dir


def _point_at(link: Path, target: Path) -> None:
    """Let a link lead to ``target``; a server that runs sees the old one or the new one.

    Raises:
        ForeignFolderError: what is there is no link.
    """
    if os.path.lexists(link) and not link.is_symlink():
        raise ForeignFolderError(
            f"{link} stands where a link to the runs belongs, and is none: it stays as it is. Move "
            "it away, or name another folder (--folder)"
        )
    new = temporary_path(link)
    new.symlink_to(target, target_is_directory=True)
    new.replace(link)


def _check_same(desk: Desk, url: str, *, asks: bool) -> None:
    differs = ""
    if desk.url != url:
        differs = f"runs at {desk.url}"
    elif desk.asks != asks:
        differs = f"{'asks' if desk.asks else 'does not ask'} for a password"
    if differs:
        raise UserError(f"the server of {desk.folder} {differs}: stop it first (sdpo server down)")


def _start(desk: Desk, role: str, arguments: list[str], *, cwd: Path) -> Started:
    with (desk.folder / f"{role}.log").open("ab") as log, _interruptible():
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal is not for it
            env=environment(desk.folder, desk.url, desk.credentials),
            cwd=cwd,
        )
    return Started.of(process.pid)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let what is started within heed SIGINT, by which Prefect's worker ends.

    A shell that starts a command in the background makes it, and all that it starts, ignore that
    signal.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start_server(desk: Desk, host: str, port: int, hosts: Sequence[str]) -> Started:
    names = [argument for name in hosts for argument in ("--allow-host", name)]
    arguments = ["flows.server", "--host", host, "--port", str(port), *names]
    arguments += ["--runs-dir", str(desk.folder / RUNS)]
    return _start(desk, "server", arguments, cwd=desk.folder)


def _start_worker(desk: Desk, here: Path) -> Started:
    arguments = ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    return _start(desk, "worker", arguments, cwd=here)


def _wait_for(desk: Desk) -> None:
    log = desk.folder / "server.log"
    _until(lambda: _is_healthy(desk.url), lambda: "server" in desk.running, what="server", log=log)
    if ask(f"{desk.url}/api/version", desk.credentials)[0] != OK:
        raise UserError(f"the server at {desk.url} asks for another password than {AUTH} has")


def _until(
    happened: Callable[[], bool], alive: Callable[[], bool], *, what: str, log: Path
) -> None:
    end = time.monotonic() + _START_S
    while not happened():
        if not alive() or time.monotonic() > end:
            raise Fault(f"the {what} did not start{_last_line(log)} (log: {log})")
        time.sleep(0.2)


def _is_healthy(url: str) -> bool:
    return ask(f"{url}/api/health")[0] == OK


def _deploy(desk: Desk, here: Path, console: Console, *, reset_schedules: bool) -> None:
    """Make the pool and the deployments, whose flows run in ``here``."""
    reset = ["--reset-schedules"] if reset_schedules else []
    places = ["--folder", str(here), "--reports", str(_runs_of(here))]
    arguments = ["flows.server.deploy", "--pool", POOL, *places, *reset]
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(desk.folder, desk.url, desk.credentials),
        cwd=desk.folder,
        check=False,
    )
    log = desk.folder / "deploy.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        raise Fault(f"the deployment failed{_last_line(log)} (log: {log})")
    console.print(escape(done.stdout.rstrip()), highlight=False, soft_wrap=True)


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _stop(process: psutil.Process, *, timeout_s: float) -> None:
    """End a process and what it started, with ``timeout_s`` for it to end all by itself."""
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
