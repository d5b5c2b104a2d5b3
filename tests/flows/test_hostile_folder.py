"""The command in a folder of the user's whose names are those of our packages, or of what these
import: installed from a wheel or editable, by every way in."""

import os
import shutil
import signal
import site
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from bench import Values
from strangers import fill

ROOT = Path(__file__).resolve().parents[2]
OURS = ("flows", "sdpo", "partitions")


@dataclass(frozen=True, slots=True)
class Installed:
    """A Python that this project is installed for."""

    bin: Path

    def call(
        self, *command: str, cwd: Path, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """A command of it in a folder, with no other variables of Python."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=cwd,
            env=kept | environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """Beside it are the packages of this environment; what they say of this project is not heeded,
    since lines of a .pth file are folders alone."""
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    for package in OURS:
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv").glob("lib/*/site-packages")
    (packages / "beside.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    python = str(folder / "venv" / "bin" / "python")
    what = ["--editable", str(source)] if request.param == "editable" else [str(source)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"),
            *("--no-index", "--no-build-isolation", "--force-reinstall", *what),
        ],
        check=True,
        cwd=folder,
    )
    return Installed(folder / "venv" / "bin")


@pytest.fixture(params=["packages", "folders", "files"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of strangers: of packages, folders of data or modules."""
    folder = tmp_path / "mine"
    fill(folder, kind=request.param)
    return folder


def test_the_command_and_its_stage_are_ours(
    installed: Installed, hostile: Path, tiny_recipe: Values
) -> None:
    small = {**tiny_recipe, "data": {**tiny_recipe["data"], "limit": 12}}
    (hostile / "recipe.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    done = installed.call("sdpo", "partition", "recipe.yaml", cwd=hostile)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "a stranger" not in done.stdout + done.stderr


WATCHED = """
import os, subprocess, sys, time
from sdpo.system.watchdog import MARK, watched
with watched("{mark}"):
    child = subprocess.Popen(["sleep", "600"], env=os.environ | {{MARK: "{mark}"}})
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_command_has_started_is_ended(installed: Installed, hostile: Path) -> None:
    mark = f"hostile-{os.getpid()}-{time.monotonic_ns()}"
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    program = subprocess.Popen(
        [str(installed.bin / "python"), "-P", "-c", WATCHED.format(mark=mark)],
        cwd=hostile,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        child = psutil.Process(int(program.stdout.readline()))
        program.send_signal(signal.SIGKILL)
    try:
        child.wait(60)
    except psutil.TimeoutExpired:
        child.kill()
        pytest.fail("it was left behind")


@pytest.mark.parametrize("package", ["sdpo", "partitions"])
def test_where_python_is_told_to_look_there_first_the_stranger_is_named(
    installed: Installed, tmp_path: Path, package: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("", encoding="utf-8")
    done = installed.call("sdpo", "--version", cwd=tmp_path, PYTHONPATH=".")
    assert done.returncode == 2
    assert f"Python takes `{package}` from {tmp_path / package}, and this project's is" in (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_program_in_a_folder_with_partitions_is_told_what_is_in_the_way(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "partitions").mkdir()
    (tmp_path / "partitions" / "__init__.py").write_text("", encoding="utf-8")
    done = installed.call("python", "-c", "import sdpo; sdpo.Run", cwd=tmp_path)
    assert done.returncode == 1
    assert "ImportError: Python takes `partitions` from another place" in done.stderr
    assert str(tmp_path / "partitions" / "__init__.py") in done.stderr
