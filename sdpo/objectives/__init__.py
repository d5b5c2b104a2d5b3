"""Define the objectives: what each needs (:mod:`.facts`, no torch) and its formula (torch)."""

from sdpo.objectives.facts import (
    OBJECTIVES,
    Objective,
    objective,
    objective_facts,
    objective_names,
    other_name,
    settings_of,
)

__all__ = [
    "OBJECTIVES",
    "Objective",
    "objective",
    "objective_facts",
    "objective_names",
    "other_name",
    "settings_of",
]
