"""Rules by which answers are judged without a model: functions, known by name.

A recipe names a rule (``judge: {rule: on_topic}``); it never names a module. A further rule is one
more function in :mod:`sdpo.judges.rules`, or in another package, which names it as an entry point
of ``sdpo.judges``.
"""

from sdpo.judges.facts import (
    OWN,
    RULES_VERSION,
    Rule,
    Turns,
    check_rule,
    rule,
    rule_names,
    rule_of,
)

__all__ = [
    "OWN",
    "RULES_VERSION",
    "Rule",
    "Turns",
    "check_rule",
    "rule",
    "rule_names",
    "rule_of",
]
