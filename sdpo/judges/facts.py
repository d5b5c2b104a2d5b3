"""Define what a rule is, and find the rules there are."""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from sdpo.errors import PluginError
from sdpo.plugins.facts import Stated, stated
from sdpo.plugins.installed import Plugin, find, unknown, usable_names

Turns = Sequence[Mapping[str, str]]
"""The turns of a prompt, in order, with ``role`` and ``content``."""
Rule = Callable[[Turns, str], float]
"""A rule gives an answer to a prompt its score: a finite number, more is better."""

RULES_VERSION = 1
"""This version is raised when one of the project's rules gives another score."""

_R = TypeVar("_R", bound=Rule)


def rule(*, description: str) -> Callable[[_R], _R]:
    """State the facts about the rule that is decorated, as literals.

    They are read from the source's text: a call does nothing.
    """
    return lambda judged: judged


def _description(states: Stated) -> str:
    """Return the description that a source states.

    Raises:
        PluginError: it is missing, no text, or something else is stated.
    """
    description = states.facts.get("description")
    if not isinstance(description, str):
        raise PluginError("its fact `description` is no text")
    if others := {*states.facts, *states.computed} - {"description"}:
        raise PluginError(f"its fact `{min(others)}` is not known")
    return description


OWN: Mapping[str, str] = {
    name: _description(states)
    for file in sorted(Path(__file__).parent.glob("*.py"))
    for name, states in stated(file.read_text(encoding="utf-8"), "rule").items()
}
"""By its name, each rule of this project has its description here."""


def rule_names() -> list[str]:
    """Return the names of all rules, those of plug-ins that can be used last."""
    return [*OWN, *(name for name in usable_names("judges") if name not in OWN)]


def check_rule(name: str) -> None:
    """Refuse a name that no rule has, and a plug-in whose facts cannot be used.

    Raises:
        PluginError: says which, with the nearest name.
    """
    if name not in OWN:
        _plugin(name)


def rule_of(name: str) -> Rule:
    """Return a rule, importing it; what it gives is checked to be a finite number.

    Raises:
        PluginError: there is none of this name, or it cannot be imported.
    """
    check_rule(name)
    if name in OWN:
        own: Rule = getattr(import_module(f"{__package__}.rules"), name)
        return _checked(f"rule `{name}`", own)
    plugin = _plugin(name)
    return _checked(plugin.called, plugin.load())


def _plugin(name: str) -> Plugin:
    plugin = find("judges", name)
    if plugin is None:
        raise PluginError(unknown("judges", name, OWN))
    if plugin.fault:
        raise PluginError(f"the {plugin.called} cannot be used: {plugin.fault}")
    try:
        _description(plugin.stated)
    except PluginError as error:
        raise PluginError(f"the {plugin.called} cannot be used: {error}") from error
    return plugin


def _checked(called: str, judged: Rule) -> Rule:
    def score(prompt: Turns, answer: str) -> float:
        try:
            found = float(judged(prompt, answer))
        except Exception as error:
            raise PluginError(
                f"the {called} fails on the answer {answer[:80]!r}: {type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(found):
            raise PluginError(f"the {called} gives {found} for the answer {answer[:80]!r}")
        return found

    return score
