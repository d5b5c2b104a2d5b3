"""Plan the steps whose pairs the models of the run make: they come after those of the data."""

import hashlib
from dataclasses import replace

from partitions import Plan, StepPlan
from sdpo.chain.context import Context
from sdpo.config import SourceConfig
from sdpo.identity.payloads import changed_settings
from sdpo.plugins.recorded import inputs_of
from sdpo.store.plan_file import Round
from sdpo.system.json_values import Json

_NO_PAIR = hashlib.sha256().hexdigest()
"""The digest of a step's pairs in the plan is that of none."""


def rounds_after(context: Context, steps: int) -> dict[int, Round]:
    """Return the rounds of the recipe's generated sources by their step; ``steps`` come before."""
    rounds = [
        Round(source=source.name, round=number)
        for source in context.config.data.generated
        for number in range(1, source.generate.rounds + 1)
    ]
    return dict(enumerate(rounds, steps + 1))


def with_rounds(context: Context, plan: Plan) -> Plan:
    """Return the plan with a step, still without pairs, for every round."""
    rounds = rounds_after(context, len(plan.steps))
    steps = tuple(
        StepPlan(
            step=step,
            contents=f"{made.source}, round {made.round}: made by M_{step - 1}",
            pairs=0,
            sources={},
            digest=_NO_PAIR,
        )
        for step, made in rounds.items()
    )
    return replace(plan, steps=(*plan.steps, *steps))


def rules_of_rounds(context: Context) -> dict[str, Json]:
    """Return the rules by which pairs will be made, as a plan's identity has them; {}: none."""
    rules: list[Json] = [
        {
            "source": source.name,
            "generate": changed_settings(source.generate),
            **prompts_input(context, source),
            **inputs_of("judges", source.generate.judge.rule, context.resolved.inputs),
        }
        for source in context.config.data.generated
    ]
    return {"generated": rules} if rules else {}


def prompts_input(context: Context, source: SourceConfig) -> dict[str, str]:
    """Return the run's input that a generated source has its prompts from."""
    kind, name = "prompts", source.name
    if source.generate.prompts_of:
        kind, name = "data", source.generate.prompts_of
    return {f"{kind}.{name}": context.resolved.inputs[f"{kind}.{name}"]}
