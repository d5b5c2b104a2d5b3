"""Tell what each objective needs: a reference, settings, pairs or sides, lengths, the NLL.

Recipes are checked and steps are planned by these facts alone, without torch. They are written as
decorators of the formulas in :mod:`sdpo.objectives.losses`, and read from the text of that module.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from sdpo.errors import PluginError
from sdpo.plugins.facts import Stated, stated
from sdpo.plugins.installed import find, unknown, usable_names
from sdpo.system.json_values import JsonObject, number_of

Form = Literal["pairwise", "pointwise", "mixed", "supervised"]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Objective:
    """One objective has these facts.

    ``form``: whether the loss reads the two sides through their difference alone (pairwise), each
    by itself (pointwise), both ways (mixed), or the chosen side alone (supervised). ``settings``
    are the training settings that its formula reads: its keyword-only parameters.
    ``constant_at_reference``: where policy and reference agree, every pair has the same loss.
    ``has_odds``: it reads the odds of a completion.
    """

    title: str
    paper: str
    form: Form
    settings: tuple[str, ...] = ("beta",)
    needs_reference: bool = True
    length_normalised: bool = False
    has_nll: bool = False
    has_odds: bool = False
    constant_at_reference: bool = False


F = TypeVar("F", bound=Callable[..., object])


def objective(
    *,
    title: str,
    paper: str,
    form: Form,
    needs_reference: bool = True,
    length_normalised: bool = False,
    has_nll: bool = False,
    has_odds: bool = False,
    constant_at_reference: bool = False,
) -> Callable[[F], F]:
    """State the facts about the objective whose formula is decorated, as literals.

    They are those of :class:`Objective` and are read from the source's text: a call does nothing.
    Its keyword-only parameters are the settings that it reads.
    """
    return lambda formula: formula


def _of_this_project() -> dict[str, Objective]:
    source = Path(__file__).with_name("losses.py").read_text(encoding="utf-8")
    return {name: _made(states) for name, states in stated(source, "objective").items()}


def _made(states: Stated) -> Objective:
    """Return the facts that a source states.

    Raises:
        PluginError: one is missing, unknown, of another kind, or no literal.
    """
    if states.computed:
        raise PluginError(f"its fact `{states.computed[0]}` is no literal")
    try:
        return Objective(**{**states.facts, "settings": states.parameters})  # type: ignore[arg-type]
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise PluginError(f"its fact `{where}`: {fault['msg']}") from error


OBJECTIVES: dict[str, Objective] = _of_this_project()
"""Those of this project, by the names of their formulas."""


def objective_facts(name: str) -> Objective:
    """Return the facts about an objective of this project or of a plug-in.

    Raises:
        PluginError: there is none of this name, or its facts cannot be used.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    plugin = find("objectives", name)
    if plugin is None:
        raise PluginError(unknown("objectives", name, OBJECTIVES))
    if plugin.fault:
        raise PluginError(f"the {plugin.called} cannot be used: {plugin.fault}")
    try:
        return _made(plugin.stated)
    except PluginError as error:
        raise PluginError(f"the {plugin.called} cannot be used: {error}") from error


def objective_names() -> list[str]:
    """Return the names of all objectives, those of plug-ins that can be used last."""
    return [*OBJECTIVES, *(name for name in usable_names("objectives") if name not in OBJECTIVES)]


_OTHER_NAMES = {
    "sigmoid": "dpo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "sppo_hard": "sppo",
    "sigmoid_norm": "dpo_norm",
    "slic": "hinge",
    "ipo_avg": "ipo",
}
"""Names under which TRL and others have an objective that is here."""


def other_name(name: str) -> str:
    """Return this project's name of the objective that others call ``name``, or ""."""
    return _OTHER_NAMES.get(name, "")


def settings_of(training: JsonObject) -> dict[str, float]:
    """Return the settings of ``training`` that its objective's formula reads."""
    facts = objective_facts(str(training["objective"]))
    return {name: number_of(training, name) for name in facts.settings}
