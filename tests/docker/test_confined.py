"""Server and worker as containers run them: unprivileged, a read-only root, over PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import DOCKER, ENTRYPOINT, ROOT, compose, entered, free_port, started

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
CONFINED = """set -eu
mount --make-rprivate /
mount --bind "$WORK" "$WORK"
mount -t tmpfs tmpfs /mnt
mount -o remount,bind,ro /
exec setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs "$@"
"""
"""As the containers: a user of their own, a root that is read-only, one folder to write in."""


@pytest.fixture
def data_base(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL of Debian's; yields the server's variables, as the compose file names them."""
    if POSTGRES is None or os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("Debian's PostgreSQL and root are needed: apt-get install postgresql")
    folder, port = tmp_path / "pg", free_port()
    folder.mkdir()
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    shutil.chown(folder, "postgres")
    (tmp_path / "pg_password").write_text("a secret of the data base\n")
    (tmp_path / "pg_password").chmod(0o644)

    def as_postgres(*command: str) -> None:
        done = subprocess.run(
            ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *command],
            capture_output=True, text=True, cwd=folder, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    as_postgres(
        *(f"{POSTGRES}/initdb", "-D", f"{folder}/db", "-U", "sdpo", "-A", "scram-sha-256"),
        *("--pwfile", f"{tmp_path}/pg_password"),
    )
    as_postgres(
        *(f"{POSTGRES}/pg_ctl", "-D", f"{folder}/db", "-w", "-l", f"{folder}/log", "start"),
        *("-o", f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"),
    )
    try:
        yield {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(port),
            "PREFECT_SERVER_DATABASE_USER": "sdpo",
            "PREFECT_SERVER_DATABASE_NAME": "postgres",
            "PREFECT_SERVER_DATABASE_PASSWORD_FILE": str(tmp_path / "pg_password"),
        }
    finally:
        as_postgres(f"{POSTGRES}/pg_ctl", "-D", f"{folder}/db", "-m", "fast", "stop")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_server_and_worker_run_confined_over_postgresql_and_a_flow_run_ends_in_words(
    tmp_path: Path, data_base: dict[str, str]
) -> None:
    work, auth, port = tmp_path / "work", tmp_path / "auth", free_port()
    work.mkdir()
    os.chown(work, 1000, 1000)
    auth.write_text("sdpo:secret\n")
    auth.chmod(0o644)
    url = f"http://127.0.0.1:{port}/api"
    shared = {
        "PREFECT_AUTH_FILE": str(auth),
        "PREFECT_API_URL": url,
        "WORK": str(work),
        "TMPDIR": str(work),
        "HOME": str(work),
        "PREFECT_HOME": str(work / "prefect"),
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SDPO_LOCK_DIR": str(work / "locks"),
    }
    confined = ("unshare", "--mount", "sh", "-c", CONFINED, "confined", str(ENTRYPOINT))
    server_command = [*compose()["services"]["server"]["command"][:-1], str(work)]
    with started(
        *server_command,
        log=tmp_path / "server.log",
        before=confined,
        HEALTH=f"{url}/health",
        PREFECT_SERVER_API_PORT=str(port),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        **shared,
        **data_base,
    ):
        health = free_port()
        with started(
            str(DOCKER / "worker.sh"),
            log=tmp_path / "worker.log",
            cwd=work,
            before=confined,
            HEALTH=f"http://127.0.0.1:{health}/health",
            PREFECT_WORKER_WEBSERVER_HOST="127.0.0.1",
            PREFECT_WORKER_WEBSERVER_PORT=str(health),
            **shared,
        ):
            asked = ("prefect", "deployment", "run", "sdpo-report/report", "--param", "run=none")
            done = entered(*asked, "--watch", **shared)
    told = done.stdout + done.stderr
    assert "run none" in told or "none" in told
    assert "Failed" in told or "FAILED" in told
    assert not list(ROOT.glob("runs/none*"))
