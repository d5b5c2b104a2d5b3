"""``sdpo server``: what it starts, that it asks for a password, and that it stops only its own."""

import urllib.error
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from bench import Bench, Values
from desk import Desk
from foreign import OF_A_SERVER, OF_EVERY_FOLDER

from flows.commands.desk import Desk as Processes
from flows.commands.desk import Started, ask
from flows.server.deploy import ENTRIES
from sdpo.system.ownership import claim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_what_a_person_set_and_what_runs_stay_when_it_is_started_again(desk: Desk) -> None:
    """Also of a deployment as versions before 0.2 made it, with Prefect's own command."""
    running, deployments = desk.processes, {d["id"] for d in desk.api("/deployments/filter", {})}
    found = desk.api("/deployments/name/sdpo-retrain/retrain")
    path = f"/deployments/{found['id']}"
    (schedule,) = found["schedules"]
    given = {"lineage": {"name": "chat", "runs_dir": "/srv/runs"}, "approval": {"required": True}}
    steps = [{"prefect.deployments.steps.set_working_directory": {"directory": "/gone"}}]
    old = {"entrypoint": "flows/retrain.py:retrain", "pull_steps": steps, "path": "/gone"}
    mine = {**given, "data": {"min_new_pairs": 500}}
    person = {"parameters": mine, "tags": ["sdpo", "mine"], "paused": True}
    desk.api(path, old | person, method="PATCH")
    cron = {"cron": "30 4 * * *", "timezone": "Asia/Seoul"}
    changed = {"schedule": cron, "active": True, "parameters": given}
    desk.api(f"{path}/schedules/{schedule['id']}", changed, method="PATCH")
    done = desk.up()
    assert done.returncode == 0, done.stderr
    assert desk.processes == running
    assert {d["id"] for d in desk.api("/deployments/filter", {})} == deployments
    assert desk.sdpo("status").returncode == 0

    kept = desk.api(path)
    assert {name: kept[name] for name in person} == person
    assert kept["entrypoint"] == "flows.retrain.retrain"
    assert kept["pull_steps"] is None
    assert kept["job_variables"]["env"]["SDPO_FOLDER"] == str(desk.folder)
    (same,) = kept["schedules"]
    assert same["id"] == schedule["id"]
    assert {name: same["schedule"][name] for name in cron} == cron
    assert same["active"]
    assert same["parameters"] == given

    done = desk.sdpo("up", "--port", str(desk.port), "--reset-schedules")
    assert done.returncode == 0, done.stderr
    assert "30 4 * * *" in done.stdout
    assert "'name': 'chat'" in done.stdout
    put_back = desk.api(path)
    assert not put_back["parameters"]
    assert not put_back["paused"]
    (first,) = put_back["schedules"]
    assert first["schedule"]["cron"] == "0 3 * * 1-5"
    assert not first["active"]


def test_a_run_lands_where_the_server_was_started_and_tells_nobody_the_password(
    desk: Desk, tiny_recipe: Values
) -> None:
    assert {"flows", "partitions", "prefect.yaml"} <= {path.name for path in desk.folder.iterdir()}
    run = desk.submit("sdpo-align-full/align-full", {**tiny_recipe, "name": "landed", "steps": []})
    assert run.wait() == "COMPLETED"
    assert (desk.folder / "runs" / "landed" / "step-2" / "record.json").is_file()
    report = (desk.folder / "runs" / "landed" / "report.html").read_bytes()
    assert ask(f"{desk.url}/reports/landed", desk.password) == (200, report)
    assert ask(f"{desk.url}/reports/landed") == (401, b"")
    assert "(/reports/landed)" in run.artifacts()["run-landed"]["data"]
    secret = desk.password.partition(":")[2]
    told = [*(desk.folder / ".sdpo-server").glob("*.log"), *(desk.folder / "runs").rglob("logs/*")]
    assert {"worker.log", "step-2.log"} <= {file.name for file in told}
    assert not [file for file in told if secret in file.read_text(errors="replace")]


def test_a_run_of_the_command_line_is_a_flow_run_of_the_server_that_is_up(
    desk: Desk, recipe: Any
) -> None:
    small = {"partition": {"strategy": "single"}, "training": {"max_steps": 1}}
    path = desk.folder / "typed.yaml"
    path.write_text(yaml.safe_dump(recipe("typed", small)), encoding="utf-8")
    called = desk.call("run", str(path), "--prefect")
    assert called.returncode == 0, called.stderr
    wanted = {"flow_runs": {"name": {"like_": "typed"}}}
    (run,) = desk.api("/flow_runs/filter", wanted)
    assert run["state"]["type"] == "COMPLETED"
    assert run["deployment_id"] is None
    assert "temporary server" not in called.stderr


def test_deployments_are_those_of_this_version_on_a_process_pool(desk: Desk) -> None:
    found = {d["name"]: d for d in desk.api("/deployments/filter", {})}
    assert found.keys() == {entry.name for entry in ENTRIES}
    assert {d["work_pool_name"] for d in found.values()} == {"sdpo"}
    assert desk.api("/work_pools/sdpo")["type"] == "process"
    retrain = found["retrain"]
    assert retrain["global_concurrency_limit"] is None, "it would end a run that pauses"
    assert retrain["schedules"][0]["schedule"]["timezone"]


def test_nobody_gets_in_without_the_password(desk: Desk) -> None:
    for password in ("", "desk:wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            desk.api("/deployments/filter", {}, password=password)
    assert "sdpo-align/align" in desk.prefect("deployment", "ls")
    assert "sdpo-align/align" not in desk.prefect("deployment", "ls", password="desk:wrong")
    for file in (desk.folder / ".sdpo-server").glob("*.log"):
        assert desk.password.partition(":")[2] not in file.read_text(errors="replace")


def test_nothing_is_kept_outside_its_folder_and_no_telemetry_is_on(desk: Desk) -> None:
    server = desk.processes.running["server"].environ()
    assert server["PREFECT_HOME"] == str(desk.folder / ".sdpo-server" / "prefect")
    assert server["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert server["DO_NOT_TRACK"] == "1"
    assert (desk.folder / ".sdpo-server" / "prefect" / "prefect.db").is_file()
    known = {Path(name).parts[0] for name in (*OF_A_SERVER, *OF_EVERY_FOLDER)}
    assert {path.name for path in (desk.folder / ".sdpo-server").iterdir()} <= known


def test_a_port_that_is_in_use_is_said_to_be(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path, desk.port)
    done = other.up()
    assert done.returncode == 2
    assert f"127.0.0.1:{desk.port} cannot be used (Address already in use)" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_another_process_now_has_the_id_of_is_left_alone(tmp_path: Path) -> None:
    mine = Started.of(psutil.Process().pid)
    somebody = Started(mine.pid, mine.started - 1)
    folder = tmp_path / ".sdpo-server"
    claim(folder, "server", proof=lambda _: False)
    Processes(folder, "http://127.0.0.1:1", server=somebody).write()
    done = Desk(tmp_path, 1).sdpo("down")
    assert done.returncode == 0, done.stderr
    assert "nothing was running" in done.stdout


def test_a_step_is_replayed_from_the_ui(desk: Desk, finished_copy: Bench) -> None:
    store = finished_copy.values()["store"]
    run = desk.submit("sdpo-replay/replay", {"run": "tiny", "step": 1, "store": store})
    assert run.wait() == "COMPLETED"
    assert run.read()["name"] == "tiny/step-1"
    assert (finished_copy.runs / "tiny-replay-1" / "step-1" / "record.json").is_file()
    told = run.artifacts()["replay-tiny-replay-1"]["data"]
    assert "bitwise identical: weights, loss curve and gamma" in told


def test_a_mistake_ends_in_its_own_message(desk: Desk, recipe, runs: Path) -> None:
    wrong = {"partition": {"strategy": "random", "fractions": [0.5, 0.4]}}
    run = desk.submit("sdpo-align-full/align-full", recipe("wrong", wrong))
    assert run.wait() == "FAILED"
    message = run.read()["state"]["message"]
    assert "partition.fractions sum to 0.9, not 1: [0.5, 0.4]" in message
    assert not (runs / "wrong").exists()
    assert not any("Traceback" in line for line in run.lines())
