"""Write the locks: what is installed, with the hash of every file.

    make lock

``constraints.txt`` gives the versions, in one place. The locks add the hashes, so that pip takes no
other file, and everything that those packages need. Torch for CPUs is in none of them: it comes
from an index of its own with other files, and is pinned by ``constraints.txt``.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
CPU, CUDA = DOCKER / "requirements-cpu.lock", DOCKER / "requirements-cuda.lock"
FLASH_ATTN = DOCKER / "flash-attn.lock"
DEVELOPMENT = ROOT / "requirements.lock"
FLASH_ATTN_VERSION = "2.8.3"
EXTRAS = ("test", "deepspeed", "e2e")
_OF_A_GPU = re.compile(r"^(cuda-[\w-]+|nvidia-[\w-]+|triton|torch)==", re.MULTILINE)
_HEAD = "# Written by `make lock`; versions come from constraints.txt.\n"


def compile_lock(
    path: Path,
    inputs: str,
    *,
    python: str,
    extras: Iterable[str] = (),
    left_out: Iterable[str] = (),
    options: Iterable[str] = (),
) -> None:
    """Resolve ``inputs`` and the project's dependencies within the constraints, and write ``path``.

    ``left_out``: packages that are not resolved. ``options``: of ``uv pip compile``; with
    ``--no-deps`` the project's dependencies are left out too.

    Raises:
        subprocess.CalledProcessError: there is no solution, or no index answers.
    """
    with NamedTemporaryFile("w", suffix=".txt") as more, NamedTemporaryFile("w") as excluded:
        more.write(inputs)
        more.flush()
        excluded.write("\n".join(left_out))
        excluded.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", more.name]
        command += ["--constraint", "constraints.txt", "--excludes", excluded.name]
        command += ["--universal", "--python-version", python, "--generate-hashes", *options]
        command += ["--no-header", "--no-annotate", "--quiet", "--output-file", str(path)]
        command += [] if "--no-deps" in command else ["pyproject.toml"]
        command += [word for extra in extras for word in ("--extra", extra)]
        path.unlink(missing_ok=True)  # uv keeps what it finds there
        subprocess.run(command, cwd=ROOT, check=True)
    path.write_text(_HEAD + path.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    # flash-attn is compiled with these.
    compile_lock(
        CUDA,
        "ninja\npackaging\npsutil\nsetuptools\nwheel\neinops\n",
        python="3.12",
        extras=["deepspeed"],
    )
    of_a_gpu = _OF_A_GPU.findall(CUDA.read_text(encoding="utf-8"))
    # On a CPU torch needs what it always needs, without the packages for a GPU.
    rest = [name for name in of_a_gpu if name != "torch"]
    compile_lock(CPU, "", python="3.11", left_out=rest, options=["--no-emit-package", "torch"])
    compile_lock(
        DEVELOPMENT,
        "",
        python="3.11",
        extras=EXTRAS,
        left_out=rest,
        options=["--no-emit-package", "torch"],
    )
    compile_lock(
        FLASH_ATTN, f"flash-attn=={FLASH_ATTN_VERSION}\n", python="3.12", options=["--no-deps"]
    )
