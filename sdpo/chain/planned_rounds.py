"""Plan the steps that have pairs which the models of the run make."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from partitions import PartitionError, Plan, StepPlan
from sdpo.chain.context import Context
from sdpo.config import SourceConfig
from sdpo.identity.payloads import changed_settings
from sdpo.plugins.recorded import inputs_of
from sdpo.store.plan_file import Round
from sdpo.system.json_values import Json

_NO_PAIR = hashlib.sha256().hexdigest()
"""The digest of a step's pairs in the plan is that of none."""


def rounds_of(context: Context, steps: int) -> dict[int, Round]:
    """Return the rounds of the recipe's generated sources by their step; ``steps`` are the data's.

    Those with a share of steps join the last of these; the others come after them.

    Raises:
        PartitionError: there are fewer steps than rounds that join them, or two join one.
    """
    found: dict[int, Round] = {}
    following = steps
    for source in context.config.data.generated:
        rounds = source.generate.rounds
        if not source.generate.share:
            first, following = following + 1, following + rounds
        elif (first := steps - rounds + 1) < 1:
            raise PartitionError(
                f"source {source.name} has {rounds} rounds that join steps of the data "
                f"(generate.share), of which there are {steps}: lower generate.rounds, or give the "
                "data more steps (partition)"
            )
        if first == 1 and source.generate.judge.implicit:
            raise PartitionError(
                f"source {source.name}: its first round joins step 1, and the model before it is "
                "S itself, whose implicit reward over S is 0 for every sample: lower "
                "generate.rounds, or name a rule or a reward model"
            )
        for number, step in enumerate(range(first, first + rounds), 1):
            if step in found:
                raise PartitionError(
                    f"sources {found[step].source} and {source.name} both join step {step} "
                    "(generate.share), and a step has the pairs of one round: leave out the share "
                    "of one of them, or its rounds"
                )
            found[step] = Round(source=source.name, round=number)
    return dict(sorted(found.items()))


def with_rounds(context: Context, plan: Plan) -> Plan:
    """Return the plan with every round: a step still without pairs, or what joins one of its."""
    steps = list(plan.steps)
    for step, made in rounds_of(context, len(plan.steps)).items():
        contents = contents_of(made, step)
        if step <= len(plan.steps):
            joined = plan.steps[step - 1]
            steps[step - 1] = replace(joined, contents=f"{joined.contents}; {contents}")
        else:
            steps.append(
                StepPlan(step=step, contents=contents, pairs=0, sources={}, digest=_NO_PAIR)
            )
    return replace(plan, steps=tuple(steps))


def contents_of(made: Round, step: int) -> str:
    """Return in words what the pairs of a round are."""
    return f"{made.source}, round {made.round}: made by M_{step - 1}"


def rules_of_rounds(
    context: Context, sources: Sequence[SourceConfig] | None = None
) -> dict[str, Json]:
    """Return the rules by which pairs will be made, as a plan's identity has them; {}: none.

    They are those of these ``sources``, by default of all that the recipe's models make.
    """
    rules: list[Json] = [
        {
            "source": source.name,
            "generate": changed_settings(source.generate),
            **prompts_input(context, source),
            **inputs_of("judges", source.generate.judge.rule, context.resolved.inputs),
        }
        for source in (context.config.data.generated if sources is None else sources)
    ]
    return {"generated": rules} if rules else {}


def prompts_input(context: Context, source: SourceConfig) -> dict[str, str]:
    """Return the run's input that a generated source has its prompts from."""
    kind, name = "prompts", source.name
    if source.generate.prompts_of:
        kind, name = "data", source.generate.prompts_of
    return {f"{kind}.{name}": context.resolved.inputs[f"{kind}.{name}"]}
