"""Compare the plug-ins that a run was made with, as its inputs name them, with those installed."""

from collections.abc import Mapping

from sdpo.errors import PluginError
from sdpo.plugins.installed import KINDS, Kind, find

_PREFIX = "plugin."


def inputs_of(kind: Kind, name: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the run's input of the plug-in ``name``; empty if it is none."""
    key = f"{_PREFIX}{kind}.{name}"
    return {key: inputs[key]} if key in inputs else {}


def check_present(inputs: Mapping[str, str], made_by: Mapping[str, str], run: str) -> None:
    """Refuse a run whose plug-ins are not all installed.

    ``inputs`` are those of the run, ``made_by`` the distributions that it had its plug-ins from.

    Raises:
        PluginError: names the plug-in and its distribution.
    """
    for key, (kind, name) in _recorded(inputs).items():
        if find(kind, name) is None:
            raise PluginError(
                f"run {run} was made with the plug-in `{name}` (sdpo.{kind}) of "
                f"{made_by.get(key, 'a package that it does not name')}, which is not installed "
                "here: install it"
            )


def check_unchanged(inputs: Mapping[str, str], made_by: Mapping[str, str], run: str) -> None:
    """Refuse a plug-in that is gone or another than ``run`` was made with.

    Raises:
        PluginError: names the plug-in, its distribution, the digests and what to do.
    """
    check_present(inputs, made_by, run)
    for key, (kind, name) in _recorded(inputs).items():
        plugin = find(kind, name)
        if plugin and (found := plugin.digest()) != inputs[key]:
            was = made_by.get(key, "another version")
            raise PluginError(
                f"the {plugin.called} is not what run {run} was made with ({was}): the digest over "
                f"its package is {found[:16]}, not {inputs[key][:16]}. Install it as it was, or "
                "run the recipe under a new name"
            )


def _recorded(inputs: Mapping[str, str]) -> dict[str, tuple[Kind, str]]:
    """Return kind and name of each plug-in among a run's inputs, by input."""
    return {
        key: (kind, key.removeprefix(start))
        for key in inputs
        for kind in KINDS
        if key.startswith(start := f"{_PREFIX}{kind}.")
    }
