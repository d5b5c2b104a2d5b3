"""Write the bills of material of the images, in CycloneDX JSON: ``bill.py FOLDER``.

The bills list what pip installs, with version and hashes, from the locks. What the base image and
Debian bring is not in them.
"""

import subprocess
import sys
from pathlib import Path

DOCKER = Path(__file__).resolve().parent


def contents(target: str) -> str:
    """Return what pip installs into an image (``cpu`` or ``cuda``), as requirements."""
    text = (DOCKER / f"requirements-{target}.lock").read_text(encoding="utf-8")
    if target == "cuda":
        return text + (DOCKER / "flash-attn.lock").read_text(encoding="utf-8")
    constraints = (DOCKER.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return text + "\n".join(line for line in constraints if line.startswith("torch=="))


def write_bill(target: str, folder: Path) -> None:
    """Write the bill of one image to ``folder``, validated against the schema of CycloneDX.

    Raises:
        subprocess.CalledProcessError: it could not be made, or is not valid.
    """
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "-"]
    command += ["--pyproject", str(DOCKER.parent / "pyproject.toml"), "--output-reproducible"]
    command += ["--validate", "--output-format", "JSON"]
    command += ["--output-file", str(folder / f"sdpo-{target}.cdx.json")]
    subprocess.run(command, input=contents(target), text=True, check=True)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for image in ("cpu", "cuda"):
        write_bill(image, out)
