"""Tell which choices of reference and target make sense, from the recipe alone.

A step's reference is ``previous`` (M_{t-1}: sDPO), ``base`` (S), ``model`` (one that the recipe
names), ``guided`` (trained first, on the step's own data), ``merged`` (the average of M_0..M_{t-1})
or ``none`` (for objectives without one).
Its target, where training starts, is ``previous`` or ``base``. What these stand for in a run is
:mod:`sdpo.chain.step_models`.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

from sdpo.objectives import objective_facts

ReferenceChoice = Literal["previous", "base", "model", "guided", "merged", "none"]
TargetChoice = Literal["previous", "base"]

REFUSED_KEYS = {
    "reference_update": "moving the reference while a step trains (TR-DPO, arXiv 2404.09656) is "
    "incompatible with cached reference log-probs: they are computed once per model, and a "
    "reference that moves is another model at every update. More, shorter steps move the reference "
    "between steps: see `partition.fractions`"
}
"""These keys are known from elsewhere and refused with a reason."""


class ChoosesModels(Protocol):
    """These rules read this part of a step's training settings."""

    @property
    def objective(self) -> str:
        """Return `training.objective` of the step."""

    @property
    def reference(self) -> str:
        """Return `training.reference` of the step."""

    @property
    def reference_model(self) -> str:
        """Return `training.reference_model` of the step."""

    @property
    def reference_revision(self) -> str:
        """Return `training.reference_revision` of the step."""

    @property
    def hands_on(self) -> bool:
        """Return whether the step publishes an adapter, and the next one goes on with it."""


def needs_reference(objective: str) -> bool:
    """Return whether the objective's formula reads a reference."""
    return objective_facts(objective).needs_reference


def is_length_normalised(objective: str) -> bool:
    """Return whether the objective's formula divides log-probs by their number of tokens."""
    return objective_facts(objective).length_normalised


def effective_reference(choice: ChoosesModels) -> str:
    """Return the choice of reference that a step follows: ``none`` where its objective reads
    none."""
    return choice.reference if needs_reference(choice.objective) else "none"


def impossible_references(trainings: Mapping[str, ChoosesModels]) -> list[str]:
    """Name choices that cannot be followed, by the name of the group they are in."""
    problems: list[str] = []
    for where, choice in trainings.items():
        if choice.reference == "none" and needs_reference(choice.objective):
            problems.append(
                f"{where}.reference is `none`, but objective {choice.objective} compares the "
                "policy with a reference: choose another reference, or an objective without one"
            )
        if choice.reference == "model" and not choice.reference_model:
            problems.append(
                f"{where}.reference is `model` but {where}.reference_model is empty: name the "
                "model's folder or hub name"
            )
        if effective_reference(choice) == "merged" and choice.hands_on:
            problems.append(
                f"{where}.reference is `merged`, the average of the models' weights, and with "
                "lora_handoff: continue a step publishes an adapter, two factors whose averages "
                "are not those of the models: set lora_handoff: merge, or another reference"
            )
    return problems


def references_without_effect(trainings: Mapping[str, ChoosesModels]) -> list[str]:
    """Return settings of the reference that nothing will read, each with why."""
    lines: list[str] = []
    uses_model = any(effective_reference(choice) == "model" for choice in trainings.values())
    for where, choice in trainings.items():
        if choice.reference not in ("previous", "none") and not needs_reference(choice.objective):
            lines.append(
                f"{where}.reference has no effect on objective {choice.objective}, which reads none"
            )
        if (choice.reference_model or choice.reference_revision) and not uses_model:
            name = "reference_model" if choice.reference_model else "reference_revision"
            lines.append(f"{where}.{name} has no effect: {where}.reference is {choice.reference}")
    return lines
