"""Run the chain, from a recipe to M_T, as a list of parts: read :func:`chain` from top to bottom.

The command line and the Prefect flow run this same list; what differs is the host's ``call``, which
runs each titled part plainly or as a task. Every node is done once: a complete record with the same
identity whose files verify stands; anything else is executed, and the reason is told.
"""

from dataclasses import dataclass
from pathlib import Path

from sdpo.chain import extended, plan_check
from sdpo.chain import plan as planning
from sdpo.chain.context import Context
from sdpo.chain.data import prepare_data
from sdpo.chain.evaluate import evaluations, find_suites
from sdpo.chain.execute import execute
from sdpo.chain.features import measure_gamma
from sdpo.chain.held_out import held_out
from sdpo.chain.left_out import telling_left_out
from sdpo.chain.node import Expansion, Part
from sdpo.chain.open_run import open_run
from sdpo.chain.plan_pairs import needs_gamma
from sdpo.chain.reserve import reserve
from sdpo.chain.rounds import check_rounds, round_data
from sdpo.chain.step import align_step
from sdpo.chain.supervised import supervised_step
from sdpo.chain.tokens import tokenise
from sdpo.chain.track import tell_trackers
from sdpo.chain.views import write_report
from sdpo.chain.win_rates import win_rates
from sdpo.config import RunConfig
from sdpo.events import NoteEvent
from sdpo.hooks import Host
from sdpo.inputs.devices import precision_hint
from sdpo.store.plan_file import read_plan
from sdpo.store.records import PlanOutputs
from sdpo.store.run_file import Carried, Origin


@dataclass(frozen=True, slots=True)
class ChainResult:
    """A finished run is described by its folder, its report and what had to be done for it.

    ``executed`` names the nodes that were executed, ``shared`` those that came from an origin.
    """

    run: Path
    report: Path
    steps: int
    executed: tuple[str, ...]
    shared: tuple[str, ...] = ()


def run_chain(
    config: RunConfig,
    *,
    host: Host = Host(),
    origin: Origin | None = None,
    carried: Carried | None = None,
    wait: bool = False,
) -> ChainResult:
    """Bring the run that ``config`` names to its last step, doing only what is not done yet.

    ``origin``: the run that a new one replays or extends, and ``carried`` what it then carries
    over. With ``wait``, waits for another process that works on the run.

    Raises:
        UserError: something the recipe names cannot be used, or a run of this name was made from
            something else; nothing half written is left.
        Fault: a stage failed; everything published before stands.
    """
    opened = open_run(config, host=host, origin=origin, carried=carried, wait=wait)
    with opened as context:
        if context.origin is None and not context.run.record_path("data").is_file():
            tell_precision(config, context)
        done = execute(context, chain(context))
        return ChainResult(
            run=context.run.path,
            report=context.run.report,
            steps=context.run.record("plan").read_outputs(PlanOutputs).steps,
            executed=tuple(done.executed),
            shared=tuple(done.shared),
        )


def tell_precision(config: RunConfig, context: Context) -> None:
    """Tell what the precision that ``config`` asks for means on this machine's CPU, if anything."""
    if hint := precision_hint(config.training.precision, context.config.launch):
        context.listen(NoteEvent(message=hint))


def chain(context: Context) -> list[Part]:
    """Return the chain of an open run, from top to bottom."""
    extends = context.carried is not None
    prepare = extended.prepare_data if extends else prepare_data
    check = extended.check if extends else plan_check.check
    partition = extended.partition if extends else planning.partition
    made = extended.made_next(context) if extends else context.config.data.generated
    has_s, has_gamma = context.config.supervised.enabled, needs_gamma(context)
    return [
        prepare(context),
        tokenise(context),
        telling_left_out(context, extended.reserve(context) if extends else reserve(context)),
        check(context),
        *([check_rounds(context, made)] if made else []),
        *find_suites(context),
        *([supervised_step(context)] if has_s else []),
        *([measure_gamma(context)] if has_gamma and not extends else []),
        partition(context),
        steps(context),
        *evaluations(context),
        *win_rates(context),
        *held_out(context),
        write_report(context),
        *tell_trackers(context),
    ]


def steps(context: Context) -> Expansion:
    """Return the steps of the plan, which are known once the plan is there."""

    def expand() -> list[Part]:
        planned = read_plan(context.run).steps[: context.last_step]
        return [
            part
            for step in planned
            for part in (
                *([round_data(context, step.step, step.generated)] if step.generated else []),
                align_step(context, step.step, step.pairs),
            )
        ]

    def foreseen() -> list[str]:
        for origin in context.origins:
            plan = None if origin.is_damaged("plan") else origin.find("plan")
            if plan:
                last = context.last_step or plan.read_outputs(PlanOutputs).steps
                return [f"step-{number}" for number in range(1, last + 1)]
        return []

    return Expansion(expand=expand, foreseen=foreseen, rule="a step for each partition of the plan")
