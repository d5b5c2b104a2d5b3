"""A Prefect server and worker as ``sdpo server up`` starts them, and what is asked of them."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from processes import stages_of

from flows.commands.desk import Desk as Processes
from flows.commands.desk import Started, environment

ROOT = Path(__file__).resolve().parents[2]
_TRIES = 10
_ANSWER_S = 60
"""A server answers within so long, while browsers and models have the processors."""
_QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT1M",
    "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "6",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
}
"""A schedule that was made, and a run that was submitted, are looked at soon, not after a minute
and three seconds; the runs of a schedule's next minute are made, not of its next hour: 100 runs in
one transaction lock the data base for a minute on a machine that has something else to do."""
_TOKENS: dict[str, str] = {}
"""Of the servers by their addresses; each is good for an hour."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def free_port() -> int:
    """A port that nobody listens at now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    happened: Callable[[], Any], timeout_s: float, what: str = "that", *, every_s: float = 0.2
) -> Any:
    """Wait until something is true; returns it. A server is asked seldom: it needs the
    processors for other things."""
    end = time.monotonic() + timeout_s
    while not (found := happened()):
        assert time.monotonic() < end, f"{what} did not happen in {timeout_s} s"
        time.sleep(every_s)
    return found


@dataclass(frozen=True, slots=True)
class Desk:
    """The folder of a server and its port."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def processes(self) -> Processes:
        """What was started."""
        return Processes.read(self.folder / ".sdpo-server")

    def sdpo(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """``sdpo server ...`` with this folder."""
        return self.call("server", *arguments)

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """``sdpo ...`` in this folder."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli.app", *arguments],
            cwd=self.folder,
            env=os.environ | _QUICK | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    def up(self) -> "subprocess.CompletedProcess[str]":
        """Start what does not run."""
        return self.sdpo("up", "--port", str(self.port))

    @property
    def password(self) -> str:
        """What the server asks for, as `user:password`."""
        return (self.folder / ".sdpo-server" / "password").read_text().strip()

    def prefect(self, *arguments: str, password: str | None = None) -> str:
        """A command of Prefect's own; what it says."""
        given = self.password if password is None else password
        made = environment(self.folder / ".sdpo-server", self.url, given)
        made["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=made, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def api(
        self,
        path: str,
        body: Any = None,
        *,
        password: str | None = None,
        method: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Any:
        """Ask the API as its clients do; POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        is_question = data is None or path.endswith("/filter")
        sent = {"Content-Type": "application/json", **self._authorized(password), **headers}
        changes = data is not None or method not in (None, "GET")
        if changes and "Prefect-Csrf-Token" not in sent:
            sent |= self._token(password)
        request = urllib.request.Request(
            f"{self.url}/api{path}", data=data, headers=sent, method=method
        )
        for _ in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:  # its data base is busy
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
            except TimeoutError:
                if not is_question:  # the server may have done it
                    raise
            time.sleep(1)
        raise AssertionError(f"{path}: the server stays unavailable")

    def _token(self, password: str | None) -> dict[str, str]:
        """What a request that changes something has to say; asked for once, as clients do."""
        client = f"tests-{os.getpid()}"
        if self.url not in _TOKENS:
            answer = self.api(f"/csrf-token?client={client}", password=password)
            _TOKENS[self.url] = str(answer["token"])
        return {"Prefect-Csrf-Token": _TOKENS[self.url], "Prefect-Csrf-Client": client}

    def _authorized(self, password: str | None) -> dict[str, str]:
        given = self.password if password is None else password
        encoded = base64.b64encode(given.encode()).decode()
        return {"Authorization": f"Basic {encoded}"} if given else {}

    def submit(
        self,
        deployment: str,
        parameters: dict[str, Any],
        *,
        environment: dict[str, str] | None = None,
    ) -> "FlowRun":
        """Create a run of ``flow/deployment``, with variables that the worker gives to it."""
        found = self.api(f"/deployments/name/{deployment}")
        body: dict[str, Any] = {"parameters": parameters}
        if environment:
            body["job_variables"] = {"env": environment}
        made = self.api(f"/deployments/{found['id']}/create_flow_run", body)
        return FlowRun(self, made["id"])

    def runs(self) -> list["FlowRun"]:
        """All flow runs, the latest first."""
        found = self.api("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
        return [FlowRun(self, run["id"]) for run in found]

    @contextmanager
    def without_worker(self) -> Iterator[None]:
        """The worker is killed, and started again whatever becomes of the test meanwhile."""
        self.kill(self.processes.worker)
        try:
            yield
        finally:
            self.restart("worker")

    def restart(self, role: str) -> None:
        """Start again what has ended."""
        done = self.up()
        assert done.returncode == 0, done.stderr
        assert role in self.processes.running

    def kill(self, started: Started | None, *, whole_group: bool = False) -> None:
        """SIGKILL to a process that was started here."""
        assert started is not None
        process = started.process
        assert process is not None
        family = [process, *process.children(recursive=True)] if whole_group else [process]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A flow run of a server."""

    desk: Desk
    id: str

    def read(self) -> dict[str, Any]:
        """What the API says of it."""
        found: dict[str, Any] = self.desk.api(f"/flow_runs/{self.id}")
        return found

    @property
    def state(self) -> str:
        """Type of its state."""
        return str(self.read()["state"]["type"])

    @property
    def ended_s(self) -> float:
        """When it came into its state: by the server's clock, whoever was slow to ask."""
        stamp = self.read()["state"]["timestamp"]
        return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()

    def wait(self, timeout_s: float = 400, states: Sequence[str] = FINAL) -> str:
        """Its state, once that is one of ``states``."""

        def state() -> str:
            with suppress(urllib.error.URLError, ConnectionError):
                return found if (found := self.state) in states else ""
            return ""

        return str(wait_until(state, timeout_s, f"one of {states}", every_s=0.5))

    def set_state(self, **state: Any) -> None:
        """What the UI's buttons do."""
        self.desk.api(f"/flow_runs/{self.id}/set_state", {"state": state})

    def cancel(self) -> None:
        """Cancel it."""
        self.set_state(type="CANCELLING", name="Cancelling")

    def retry(self) -> None:
        """Retry it, as the UI does."""
        self.set_state(type="SCHEDULED", name="AwaitingRetry", message="Retry from the UI")

    @property
    def engine(self) -> psutil.Process | None:
        """The process that runs the flow."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_mine = process.environ().get("PREFECT__FLOW_RUN_ID") == self.id
                if is_mine and "prefect.engine" in " ".join(process.cmdline()):
                    return process
        return None

    def all_processes(self) -> list[psutil.Process]:
        """Everything that still runs on its account: environments are inherited."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_mine = process.environ().get("PREFECT__FLOW_RUN_ID") == self.id
                if is_mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """Its latest artifacts by key."""
        body = {"flow_runs": {"id": {"any_": [self.id]}}, "sort": "CREATED_DESC"}
        found = self.desk.api("/artifacts/filter", body)
        return {artifact["key"]: artifact for artifact in reversed(found)}

    def tasks(self) -> dict[str, str]:
        """State of each task by name."""
        body = {"flow_runs": {"id": {"any_": [self.id]}}}
        found = self.desk.api("/task_runs/filter", body)
        return {task["name"]: task["state"]["name"] for task in found}

    def lines(self) -> list[str]:
        """Its log lines in the UI."""
        body = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.desk.api("/logs/filter", body)]

    def until_training(self, run: Path, *, timeout_s: float = 400) -> None:
        """Wait until a step has saved a state from which it can go on."""
        end = time.monotonic() + timeout_s
        while not any(run.glob("step-*/resume/*")):
            found = self.read()["state"]
            assert found["type"] not in FINAL, found
            assert time.monotonic() < end, f"no resume state in {timeout_s} s: {found}"
            for _ in range(10):
                if any(run.glob("step-*/resume/*")):
                    break
                time.sleep(0.2)
        assert stages_of(run)


@contextmanager
def desk_in(folder: Path) -> Iterator[Desk]:
    """A server and a worker, stopped afterwards."""
    desk = Desk(folder, free_port())
    done = desk.up()
    try:
        assert done.returncode == 0, done.stderr
        assert f"UI: {desk.url}/deployments" in done.stdout
        yield desk
    finally:
        stopped = desk.sdpo("down")
        assert stopped.returncode == 0, stopped.stderr
