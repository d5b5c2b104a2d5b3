"""Training objectives: what each one needs (no torch), and its formula (:mod:`.losses`, torch)."""

from sdpo.objectives.facts import (
    OBJECTIVE_SETTINGS,
    OBJECTIVES,
    Objective,
    ObjectiveName,
    describe,
    other_name,
    settings_of,
)

__all__ = [
    "OBJECTIVES",
    "OBJECTIVE_SETTINGS",
    "Objective",
    "ObjectiveName",
    "describe",
    "other_name",
    "settings_of",
]
