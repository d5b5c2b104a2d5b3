"""The chain, from a recipe to M_T, as a recipe: read :func:`run_chain` from top to bottom.

The command line and the Prefect flow run these same functions; what differs is ``call``, which runs
a named function plainly or as a task. Every node is done once: a complete record with the same
identity whose files verify stands, anything else is executed, with a word about why.
"""

from dataclasses import dataclass
from pathlib import Path

from sdpo.chain import data as nodes
from sdpo.chain import extended
from sdpo.chain import plan as planning
from sdpo.chain import step as steps
from sdpo.chain.context import Context
from sdpo.chain.features import measure_gamma
from sdpo.chain.open_run import open_run
from sdpo.chain.reserve import reserve
from sdpo.chain.supervised import supervised_step
from sdpo.chain.tokens import tokenise
from sdpo.chain.views import write_report
from sdpo.config import RunConfig
from sdpo.events import Listener
from sdpo.hooks import Call, Occupy, plain_call, unlimited
from sdpo.store.origin import Carried, Origin


@dataclass(frozen=True, slots=True)
class ChainResult:
    """A finished run and what had to be done for it: names of the nodes that were executed, and of
    those that an origin shared."""

    run: Path
    report: Path
    steps: int
    executed: tuple[str, ...]
    shared: tuple[str, ...] = ()


def run_chain(
    config: RunConfig,
    *,
    call: Call = plain_call,
    listen: Listener = lambda event: None,
    origin: Origin | None = None,
    carried: Carried | None = None,
    wait: bool = False,
    occupy: Occupy = unlimited,
) -> ChainResult:
    """Bring the run that ``config`` names to its last step, doing only what is not done yet.

    ``origin``: the run that a new one replays or extends, ``carried`` what it then carries over.
    With ``wait``, waits for another process that works on the run. ``occupy`` holds what limits the
    use of devices besides the host's own locks, while a stage runs.

    Raises:
        UserError: something the recipe names cannot be used, or a run of this name was made from
            something else; nothing half written is left.
        Fault: a stage failed; everything published before stands.
    """
    opened = open_run(config, listen=listen, origin=origin, carried=carried, wait=wait)
    with opened as context:
        context.call, context.occupy = call, occupy
        number = walk(context, call=call)
        return ChainResult(
            run=context.run.path,
            report=context.run.report,
            steps=number,
            executed=tuple(context.executed),
            shared=tuple(context.shared),
        )


def walk(context: Context, *, call: Call = plain_call) -> int:
    """The nodes of an open run, one after the other; returns the number of steps in its plan."""
    carried = context.carried
    data, planned = (extended, extended) if carried else (nodes, planning)
    call("prepare data", data.prepare_data, context)
    call("tokenise", tokenise, context)
    call("reserve", extended.reserve if carried else reserve, context)
    call("check", planned.check, context)
    if context.config.supervised.enabled:
        call("step 0: supervised", supervised_step, context)
    if not context.carried and planning.needs_gamma(context):
        call("measure gamma under M_0", measure_gamma, context)
    plan = call("partition", planned.partition, context)
    for step in plan.steps[: context.last_step]:
        name = f"step {step.step}: align on D_{step.step} ({step.pairs} pairs)"
        call(name, steps.align_step, context, step.step)
    call("report", write_report, context)
    return len(plan.steps)
