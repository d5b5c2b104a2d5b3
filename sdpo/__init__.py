"""This is the engine of stepwise DPO: data, log-probs, objectives, trainer, run store, report.

What a Python program or a notebook uses of it is named here and loaded when it is first asked for:
`import sdpo` alone loads nothing and sets nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpo import objectives
    from sdpo.api.recipes import Recipe, load_recipe
    from sdpo.api.run import Run
    from sdpo.api.running import replay, resume, run

    __version__: str

__all__ = [
    "Recipe",
    "Run",
    "__version__",
    "load_recipe",
    "objectives",
    "replay",
    "resume",
    "run",
]

_WHERE = {
    "Recipe": "sdpo.api.recipes",
    "Run": "sdpo.api.run",
    "load_recipe": "sdpo.api.recipes",
    "replay": "sdpo.api.running",
    "resume": "sdpo.api.running",
    "run": "sdpo.api.running",
}


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return import_module("sdpo.objectives")
    if name == "__version__":
        return _version()
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_WHERE[name]), name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "partitions":
            raise
        raise ImportError(
            "Python takes `partitions` from another place than this project's: a folder or file of "
            f"that name comes first on sys.path ({error.path or 'the current folder'}). Rename it, "
            "or start Python elsewhere"
        ) from error


def _version() -> str:
    """Return the version that was installed, which a release has from its tag."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sdpo")
    except PackageNotFoundError:
        return "0+not.installed"


def __dir__() -> list[str]:
    return sorted(__all__)
