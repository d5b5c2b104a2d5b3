"""Training objectives: what each one needs (no torch), and its formula (:mod:`.losses`, torch)."""

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
