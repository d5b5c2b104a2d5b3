"""The chain, from a recipe to M_T, as a recipe: read :func:`run_chain` from top to bottom.

The command line and the Prefect flow run these same functions; what differs is ``call``, which runs
a named function plainly or as a task. Every node is done once: a complete record with the same
identity whose files verify stands, anything else is executed, with a word about why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sdpo import nodes, planning, steps
from sdpo.config import RunConfig
from sdpo.events import Listener
from sdpo.run import open_run

T = TypeVar("T")


class Call(Protocol):
    """Runs ``function(context)`` under a name that a person understands."""

    def __call__(self, name: str, function: Callable[..., T], /, *args: object) -> T:
        """The function's result."""


def plain_call(_name: str, function: Callable[..., T], /, *args: object) -> T:
    """Call ``function`` here and now."""
    return function(*args)


@dataclass(frozen=True, slots=True)
class ChainResult:
    """A finished run and what had to be done for it: names of the nodes that were executed."""

    run: Path
    report: Path
    steps: int
    executed: tuple[str, ...]


def run_chain(
    config: RunConfig, *, call: Call = plain_call, listen: Listener = lambda event: None
) -> ChainResult:
    """Bring the run that ``config`` names to its last step, doing only what is not done yet.

    Raises:
        UserError: something the recipe names cannot be used, or a run of this name was made from
            something else; nothing half written is left.
        Fault: a stage failed; everything published before stands.
    """
    with open_run(config, listen=listen) as context:
        call("prepare data", nodes.prepare_data, context)
        call("tokenise", nodes.tokenise, context)
        call("reserve", nodes.reserve, context)
        call("check", planning.check, context)
        if context.config.supervised.enabled:
            call("step 0: supervised", steps.supervised_step, context)
        if planning.needs_gamma(context):
            call("measure gamma under M_0", steps.measure_gamma, context)
        plan = call("partition", planning.partition, context)
        for step in plan.steps:
            name = f"step {step.step}: align on D_{step.step} ({step.pairs} pairs)"
            call(name, steps.align_step, context, step.step)
        report = call("report", steps.write_report, context)
        return ChainResult(
            run=context.run.path,
            report=report,
            steps=len(plan.steps),
            executed=tuple(context.executed),
        )
