"""Server and worker as containers run them: unprivileged, a read-only root, over PostgreSQL."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
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
exec setpriv $AS --no-new-privs "$@"
"""
"""As the containers: a root that is read-only, one folder to write in, no way to more rights."""
AS_USER = "--reuid 1000 --regid 1000 --clear-groups"
WITHOUT_RIGHTS = "--bounding-set=-all --inh-caps=-all"
"""Where the Python of the tests is its owner's alone, root without any of root's rights."""


def whom() -> str:
    """Whom the processes run as: a user of their own, where that user may run this Python."""
    folders = Path(sys.executable).resolve().parents
    may = all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)
    return AS_USER if may else WITHOUT_RIGHTS


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other accounts may enter, which they may not those of pytest."""
    with tempfile.TemporaryDirectory(prefix="sdpo-confined-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def data_base(place: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL of Debian's; yields the server's variables, as the compose file names them."""
    if POSTGRES is None or os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("Debian's PostgreSQL and root are needed: apt-get install postgresql")
    folder, port = place / "pg", free_port()
    folder.mkdir()
    shutil.chown(folder, "postgres")
    (place / "pg_password").write_text("a secret of the data base\n")
    (place / "pg_password").chmod(0o644)

    def as_postgres(*command: str) -> None:
        done = subprocess.run(
            ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *command],
            capture_output=True, text=True, cwd=folder, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    as_postgres(
        *(f"{POSTGRES}/initdb", "-D", f"{folder}/db", "-U", "sdpo", "-A", "scram-sha-256"),
        *("--pwfile", f"{place}/pg_password"),
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
            "PREFECT_SERVER_DATABASE_PASSWORD_FILE": str(place / "pg_password"),
        }
    finally:
        as_postgres(f"{POSTGRES}/pg_ctl", "-D", f"{folder}/db", "-m", "fast", "stop")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_server_and_worker_run_confined_over_postgresql_and_a_flow_run_ends_in_words(
    place: Path, data_base: dict[str, str]
) -> None:
    work, auth, port = place / "work", place / "auth", free_port()
    work.mkdir()
    run_as = whom()
    if run_as == AS_USER:
        os.chown(work, 1000, 1000)
    auth.write_text("sdpo:secret\n")
    auth.chmod(0o644)
    url = f"http://127.0.0.1:{port}/api"
    shared = {
        "PREFECT_AUTH_FILE": str(auth),
        "PREFECT_API_URL": url,
        "WORK": str(work),
        "AS": run_as,
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
        log=place / "server.log",
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
            log=place / "worker.log",
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
