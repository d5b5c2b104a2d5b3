"""Run the commands about a recipe or its run: run, partition, export, recipes, report."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.commands.desk import FOLDER, Desk, environment
from flows.recipes.presets import presets
from flows.show.console import RunConsole, table
from flows.show.tables import partition_rows
from sdpo.chain.context import Context
from sdpo.chain.data import prepare_data
from sdpo.chain.execute import execute
from sdpo.chain.open_run import open_run, run_folder_of, withheld_for
from sdpo.chain.plan import partition
from sdpo.chain.plan_pairs import needs_gamma
from sdpo.chain.reserve import reserve
from sdpo.chain.run_chain import ChainResult, run_chain
from sdpo.chain.tokens import tokenise
from sdpo.config import RunConfig, StoreConfig
from sdpo.errors import Fault, UserError
from sdpo.hooks import Host
from sdpo.inputs.resolve import cache_dir
from sdpo.report import summarise, write_report
from sdpo.store.plan_file import PlanFile, read_plan
from sdpo.store.recorded import of_known_form
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_start import is_plan
from sdpo.system.files import write_text
from sdpo.system.privacy import withheld_by_folder, withholding
from sdpo.system.words import counted, noun


def run_recipe(config: RunConfig, *, console: Console, prefect: bool, wait: bool = False) -> None:
    """Run the chain, with ``prefect`` as a flow, then print its tables and where the report is."""
    if prefect:
        result = _run_flow(config)
    else:
        with RunConsole(console) as listen:
            result = run_chain(config, host=Host(listen=listen), wait=wait)
    print_result(result, console=console)


def _run_flow(config: RunConfig) -> ChainResult:
    """Run the chain as a flow, on the server that is up here unless Prefect's settings name one.

    Raises:
        Fault: there is no server, and the temporary one that Prefect then starts did not answer.
    """
    desk = Desk.read(FOLDER.absolute())
    if not os.environ.get("PREFECT_API_URL") and "server" in desk.running:
        made = environment(desk.folder, desk.url, desk.credentials)
        os.environ |= {name: made[name] for name in made if name.startswith("PREFECT_")}
    # Prefect is loaded only where it is asked for: two seconds and a server.
    from flows.align_full import align_full

    try:
        result: ChainResult = align_full(
            **{name: getattr(config, name) for name in RunConfig.model_fields}
        )
    except RuntimeError as error:
        if "ephemeral Prefect API server" not in str(error):
            raise
        raise Fault(
            "no Prefect server runs here, and the temporary one that Prefect starts then did not "
            "answer in time: sdpo server up, or set PREFECT_API_URL"
        ) from error
    return result


def print_result(result: ChainResult, *, console: Console) -> None:
    """Print the tables of a finished run and where its report is."""
    if not result.executed:
        console.print(f"run {result.run.name} is complete: nothing to do", highlight=False)
    console.print()
    console.print(table(partition_rows(result.run), title="Partitions"))
    print_summary(result.run, console=console)
    console.print(f"report: {escape(str(result.report))}", highlight=False, soft_wrap=True)


def print_summary(run: Path, *, console: Console) -> None:
    """Print the report in short: its tables, what follows from them, and what to beware of."""
    summary = summarise(run)
    for part in (*summary.tables, *summary.evaluations):
        rows = [dict(zip(part.columns, row, strict=True)) for row in part.rows]
        console.print(table(rows, title=part.title, numeric=part.columns[part.text_columns :]))
    console.print(f"[bold]{escape(summary.verdict.headline)}[/]", highlight=False)
    for sentence in summary.verdict.sentences:
        console.print(f"  {escape(sentence)}", highlight=False)
    if summary.health:
        console.print("[bold]Health of the chain[/]", highlight=False)
    for sentence in summary.health:
        console.print(f"  {escape(sentence)}", highlight=False)
    for caveat in summary.caveats:
        console.print(f"[yellow]{escape(caveat.title)}:[/] {escape(caveat.text)}", highlight=False)


@contextmanager
def scratch_run(config: RunConfig, *, console: Console) -> Iterator[Context]:
    """Open a run in a temporary folder, with the real caches: for looking, not for keeping."""
    with tempfile.TemporaryDirectory(prefix="sdpo-") as folder, RunConsole(console) as listen:
        store = StoreConfig(runs_dir=folder, cache_dir=str(cache_dir(config)))
        here = config.model_copy(update={"store": store})
        with open_run(here, host=Host(listen=listen)) as context:
            yield context


def plan_recipe(config: RunConfig, *, console: Console, target: Path | None) -> None:
    """Print the partition plan of a recipe and write it to ``target``, else into the run's folder.

    Nothing is written into a run that exists already, nor where the strategy needs gamma first.

    Raises:
        UserError: ``target`` is a file that is no plan, or the data cannot be used.
        ForeignFolderError: the run's folder is something else.
    """
    run = run_folder_of(config)
    if target is None:
        run.check_own()
    else:
        _check_replaceable(target)
    with scratch_run(config, console=console) as context:
        execute(context, [prepare_data(context)])
        if needs_gamma(context):
            console.print(
                "this strategy needs gamma of every pair under M_0, which must be measured first: "
                "`sdpo run` measures it and plans with it",
                soft_wrap=True,
            )
            return
        execute(context, [tokenise(context), reserve(context), partition(context)])
        rows = partition_rows(context.run.path)
        content = context.run.plan_file.read_text(encoding="utf-8")
        plan = read_plan(context.run)
        bits = withheld_for(context.run, context.resolved)
    console.print(table(rows, title=f"Partition plan: {config.partition.strategy}"))
    print_plan_notes(plan, console=console)
    if target is None and run.run_file.is_file():
        console.print(
            f"run {run.name} keeps its own plan: {escape(str(run.plan_file))}", soft_wrap=True
        )
        return
    with withholding(bits):
        if target is None:
            run.claim()
            write_text(run.plan_file, content)
        else:
            write_text(target, content)
    where = escape(str(target or run.plan_file))
    console.print(f"plan: {where}", highlight=False, soft_wrap=True)


def _check_replaceable(path: Path) -> None:
    """Refuse to write a plan over what is no plan.

    Raises:
        UserError: something else is there.
    """
    if os.path.lexists(path) and not is_plan(path):
        raise UserError(f"{path} exists and is no plan: name another file (--out)")


def print_plan_notes(plan: PlanFile, *, console: Console) -> None:
    """Print what the table of steps does not show: the reserve, prompts in several partitions."""
    held = ", ".join(f"{name} {count}" for name, count in plan.reserve.items())
    console.print(f"reserved: {escape(held)}", highlight=False)
    for overlap in plan.overlap:
        steps = " and ".join(f"D_{step}" for step in overlap.steps)
        prompts = counted(overlap.prompts, "prompt")
        occur = noun(overlap.prompts, "occurs", "occur")
        console.print(
            f"[yellow]warning:[/] {prompts} ({counted(overlap.pairs, 'pair')}) {occur} in {steps}",
            highlight=False,
        )


def list_recipes(*, console: Console) -> None:
    """Print a line for each preset."""
    rows = [
        {
            "recipe": preset.name,
            "what": preset.summary,
            "objective": ", then ".join(preset.objectives),
            "arXiv": preset.paper,
        }
        for preset in presets()
    ]
    console.print(table(rows))
    console.print("sdpo check NAME looks at one, sdpo run NAME runs it, --set changes a setting;")
    console.print("sdpo recipes NAME > my.yaml makes it yours.")


def render(run: Path, *, console: Console) -> None:
    """Write the report of a run anew, and print where it is."""
    folder = RunFolder(run)
    folder.check_own()
    folder.check_there()
    with withholding(withheld_by_folder(run)), of_known_form(run):
        where = escape(str(write_report(run)))
    console.print(f"report: {where}", highlight=False, soft_wrap=True)
