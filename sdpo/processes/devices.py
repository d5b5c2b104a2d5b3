"""Let one stage at a time use a device of a host, whatever run it belongs to.

Each device has a lock file, held from before a stage starts until all of it has ended. The kernel
releases it when its holders end, the stage's process among them, however they end. Locks belong to
a host and a user: they are in a folder that does not depend on the environment, since a schedule's
and a terminal's would differ; ``SDPO_LOCK_DIR`` names another, for containers that share a host.
What SLURM allots to a job nobody else has, and every job may call its own first GPU 0: within one,
locks are the job's on its node.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sdpo.config import LaunchConfig
from sdpo.errors import UserError
from sdpo.events import Listener
from sdpo.hooks import Occupy, unlimited
from sdpo.system.locks import hold

SHARE = "SDPO_SHARE_DEVICE"
"""This environment variable turns the locks off, as ``launch.share_device`` does for one run."""
LOCK_DIR = "SDPO_LOCK_DIR"
_OTHERWISE = (
    "where both fit, launch.share_device=true (--set) does not wait, "
    f"nor does {SHARE}=1 in the environment"
)


def device_names(launch: LaunchConfig) -> list[str]:
    """Return the devices that the processes of a stage use: ``cpu``, or ``cuda:<number or UUID>``.

    The devices are named as CUDA_VISIBLE_DEVICES names them.
    """
    if launch.device != "cuda":
        return ["cpu"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    listed = [part.strip() for part in visible.split(",") if part.strip()]
    numbered = listed or [str(number) for number in range(launch.processes)]
    return [f"cuda:{name}" for name in numbered[: launch.processes]]


@contextmanager
def hold_devices(
    launch: LaunchConfig,
    *,
    run: str,
    listen: Listener,
    occupy: Occupy = unlimited,
    wait: bool = True,
) -> Iterator[tuple[int, ...]]:
    """Hold the devices of a stage alone, waiting for other runs; yields the locks' descriptors.

    Where somebody else holds one, an event says who. ``occupy`` is entered first: it may be shared
    with other hosts, and whoever waits there must not keep a device from those who could use it.

    Raises:
        InUseError: somebody holds one, and ``wait`` is false.
    """
    if launch.share_device or os.environ.get(SHARE, "") not in ("", "0"):
        yield ()
        return
    names = device_names(launch)
    with ExitStack() as stack:
        stack.enter_context(occupy(names))
        folder = lock_folder()
        yield tuple(
            stack.enter_context(
                hold(
                    folder / f"{_allotted()}{name.replace('/', '-')}.lock",
                    what=f"device {name}",
                    wait=wait,
                    listen=listen,
                    run=run,
                    otherwise=_OTHERWISE,
                )
            )
            for name in sorted(names)  # one order for all, so that no two wait for each other
        )


def _allotted() -> str:
    """Return what the locks of devices begin with that a job of SLURM has for itself; else ""."""
    job, node = (os.environ.get(f"SLURM{name}", "") for name in ("_JOB_ID", "D_NODENAME"))
    return f"slurm-{job}-{node}-".replace("/", "-") if job else ""


def lock_folder() -> Path:
    """Return the folder with the locks of this user's stages on this host, making it if needed.

    Raises:
        UserError: somebody else owns the folder.
    """
    given = os.environ.get(LOCK_DIR, "")
    folder = Path(given) if given else Path(f"/tmp/sdpo-devices-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not given and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise UserError(
            f"{folder} belongs to somebody else: remove it, or name another folder in {LOCK_DIR}"
        )
    return folder
