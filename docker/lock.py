"""Write the locks: what is installed, with the hash of every file.

    make lock

``constraints.txt`` gives the versions, in one place. The locks add the hashes, so that pip takes no
other file, and everything that those packages need. Torch is in locks of its own:
``torch-cpu.lock`` has its builds for CPUs, which come from another index than all else, and
``torch.lock`` the usual ones with what they need on a GPU.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
CPU, CUDA = DOCKER / "requirements-cpu.lock", DOCKER / "requirements-cuda.lock"
FLASH_ATTN = DOCKER / "flash-attn.lock"
TORCH, TORCH_CPU = DOCKER / "torch.lock", DOCKER / "torch-cpu.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
DEVELOPMENT = ROOT / "requirements.lock"
FLASH_ATTN_VERSION = "2.8.3"
EXTRAS = ("test", "deepspeed", "quantisation", "e2e")
_OF_A_GPU = re.compile(r"^(cuda-[\w-]+|nvidia-[\w-]+|triton|torch)==", re.MULTILINE)
_TORCH = re.compile(r"^torch==(\S+)", re.MULTILINE)
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


def lock_tools() -> None:
    """Write the lock of the tools of the documentation, which stand in no image.

    Raises:
        subprocess.CalledProcessError: there is no solution, or no index answers.
    """
    given, path = "docs/requirements.in", ROOT / "docs" / "requirements.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", given, "--output-file", str(path)]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--quiet"]
    path.unlink(missing_ok=True)  # uv keeps what it finds there
    subprocess.run(command, cwd=ROOT, check=True)
    head = f"# Written by `make lock`; versions come from {given}.\n"
    path.write_text(head + path.read_text(encoding="utf-8"), encoding="utf-8")


def lock_torch(cuda: str) -> str:
    """Return the lock of torch as the usual index has it, and of what its build for GPUs needs.

    Args:
        cuda: the lock of the CUDA image, in which they are.
    """
    entries = re.findall(r"^\S.*(?:\n {4}--hash=.*)*", cuda, re.MULTILINE)
    return _HEAD + "".join(f"{entry}\n" for entry in entries if _OF_A_GPU.match(entry))


def lock_torch_cpu(version: str, page: str) -> str:
    """Return the lock of torch's builds for CPUs.

    Args:
        version: which one.
        page: the page on which their index lists its files, each with its hash.

    Raises:
        ValueError: the page has no file of this version for Linux and a Python that is served.
    """
    name = rf"torch-{re.escape(version)}(?:%2B|\+)cpu-cp3(?:11|12|13)-cp3\d\d-manylinux\w+\.whl"
    found = re.findall(rf"{name}#sha256=([0-9a-f]{{64}})", page)
    if not found:
        raise ValueError(f"{CPU_INDEX} lists no build of torch {version} for CPUs")
    hashes = "".join(f" \\\n    --hash=sha256:{each}" for each in sorted(set(found)))
    return f"{_HEAD}torch=={version}+cpu{hashes}\n"


if __name__ == "__main__":
    lock_tools()
    # flash-attn is compiled with these.
    compile_lock(
        CUDA,
        "ninja\npackaging\npsutil\nsetuptools\nwheel\neinops\n",
        python="3.12",
        extras=["deepspeed", "quantisation"],
    )
    with urlopen(CPU_INDEX) as page:
        listed = page.read().decode()
    TORCH.write_text(lock_torch(CUDA.read_text(encoding="utf-8")), encoding="utf-8")
    (version,) = _TORCH.findall(CUDA.read_text(encoding="utf-8"))
    TORCH_CPU.write_text(lock_torch_cpu(version, listed), encoding="utf-8")
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
