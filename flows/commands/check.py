"""Run ``sdpo check``: show everything a person should see before money is spent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from flows.commands.foresight import foresee, updates_at_rate_0, without_update
from flows.commands.hardware import Hardware, advice, choices
from flows.commands.memory import estimate_memory
from flows.commands.run import print_plan_notes, scratch_run
from flows.show.console import Row, table
from flows.show.rejected import rejected_rows
from sdpo.chain.context import Context
from sdpo.chain.data import prepare_data
from sdpo.chain.evaluate import find_suites
from sdpo.chain.examples_left import examples_left
from sdpo.chain.execute import execute
from sdpo.chain.model_trial import try_models
from sdpo.chain.open_run import objection, run_folder_of
from sdpo.chain.other_reference import check_references
from sdpo.chain.plan import partition
from sdpo.chain.plan_check import checked, foresee_plan
from sdpo.chain.plan_pairs import needs_gamma
from sdpo.chain.reserve import reserve
from sdpo.chain.rounds import check_rounds
from sdpo.chain.run_chain import tell_precision
from sdpo.chain.start_stage import check_room
from sdpo.chain.tokens import tokenise, tokens_path
from sdpo.config import RunConfig, describe
from sdpo.config.automatic import optimizer_steps
from sdpo.config.reference_choice import effective_reference
from sdpo.events import ResultEvent
from sdpo.identity.model_digest import TensorEntry, base_entries
from sdpo.identity.model_folder import read_config, text_config, unused_files
from sdpo.processes.stage_results import ExampleViewResult, PairViewResult
from sdpo.processes.stage_specs import ViewSpec
from sdpo.store.plan_file import read_plan
from sdpo.store.records import DataOutputs, NodeRecord, ReserveOutputs
from sdpo.store.step_data import planned
from sdpo.system.json_values import JsonObject
from sdpo.tokens.lengths import LengthSummary, length_summary
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile
from sdpo.tokens.view import TextView

_SHOWN_CHARS = 1200
_TRIED = "loads, and scores the shortest and the longest pair"


def check_recipe(config: RunConfig, *, console: Console, hardware: Hardware | None = None) -> None:
    """Prepare and tokenise the data in a scratch run and print what a run would work with.

    With ``hardware``, also what it would take of devices that need not be here.

    Raises:
        UserError: what the run itself would refuse before its first optimizer step.
    """
    run_folder_of(config).check_own()
    with scratch_run(config, console=console) as context:
        tell_precision(config, context)
        execute(context, [prepare_data(context), tokenise(context), reserve(context)])
        data, record = context.run.record("data"), context.run.record("reserve")
        tokens = TokenFile.open(tokens_path(context))
        _print_data(context, data, record, console)
        _print_unused_files(context, console)
        _print_pair(context, tokens, console)
        _print_lengths(context, tokens, console)
        plan = foresee_plan(context)
        made = context.config.data.generated
        rounds = [check_rounds(context, made)] if made else []
        execute(context, [checked(context, lambda: plan), *rounds, *find_suites(context)])
        steps = [step.step for step in plan.steps]
        _print_supervised(context, console)
        if needs_gamma(context):
            console.print("the partition depends on gamma under M_0, which `sdpo run` measures")
        else:
            execute(context, [partition(context)])
            _print_steps(context, tokens, steps, console)
        check_references(context, steps)
        _try_models(context, steps, console)
        _print_memory(context, console)
        _check_place(context, config, console)
        _print_verdict(context, tokens, steps, console)
        if hardware:
            _print_hardware(hardware, context, config, tokens, steps, console)


def _print_data(context: Context, data: NodeRecord, record: NodeRecord, console: Console) -> None:
    console.print(
        table(
            _source_rows(data.read_outputs(DataOutputs), record.read_outputs(ReserveOutputs)),
            title="Data",
        )
    )
    paths = {source.name: source.path for source in context.config.data.given}
    if rejected := rejected_rows(context.run.rejected, paths):
        console.print(table(rejected, title="Rows that are not used"))


def _print_unused_files(context: Context, console: Console) -> None:
    code = context.config.model.trust_remote_code
    if unused := unused_files(context.resolved.model, code=code):
        console.print(
            f"in the model's folder, and not used: {escape(', '.join(unused))}",
            highlight=False,
            soft_wrap=True,
        )


def _print_lengths(context: Context, tokens: TokenFile, console: Console) -> None:
    lengths = length_summary(tokens)
    console.print(table(_length_rows(lengths), title="Lengths, in tokens"))
    console.print(
        f"truncated: {lengths.chosen_truncated:.1%} of the chosen, "
        f"{lengths.rejected_truncated:.1%} of the rejected completions "
        f"(data.max_length {context.config.data.max_length})",
        highlight=False,
    )
    if limit := context.config.data.max_prompt_length:
        share = tokens.report.notes.get("prompt_cut", 0) / tokens.report.usable
        console.print(
            f"cut at the beginning: {share:.1%} of the prompts (data.max_prompt_length {limit})",
            highlight=False,
        )


def _print_steps(
    context: Context, tokens: TokenFile, steps: Sequence[int], console: Console
) -> None:
    rows = [_step_row(context, tokens, number) for number in steps]
    console.print(table(rows, title="Steps"))
    print_plan_notes(read_plan(context.run), console=console)


def _try_models(context: Context, steps: Sequence[int], console: Console) -> None:
    for name, reason in try_models(context, steps):
        told = f"is not tried here: {reason}" if reason else _TRIED
        console.print(f"{escape(name)} {told}", highlight=False, soft_wrap=True)


def _check_place(context: Context, config: RunConfig, console: Console) -> None:
    """Warn of what is where the run would be, and refuse a run that its disks have no room for."""
    run = run_folder_of(config)
    if taken := objection(run, context.resolved):
        console.print(f"[yellow]warning:[/] {escape(taken)}", highlight=False, soft_wrap=True)
    check_room(
        context,
        run,
        name="step-1",
        model=context.resolved.model,
        training=context.config.training_of(1),
    )


def _print_memory(context: Context, console: Console) -> None:
    config, entries = read_config(context.resolved.model), base_entries(context.resolved.model)
    memory = estimate_memory(
        config,
        parameters=_count(entries),
        training=context.config.training,
        launch=context.config.launch,
        held=_held(config, entries),
        base_precision=context.config.model.base_precision,
    )
    console.print(table(memory.rows(), title="Memory per device, estimated"))


def _print_hardware(
    hardware: Hardware,
    context: Context,
    config: RunConfig,
    tokens: TokenFile,
    steps: list[int],
    console: Console,
) -> None:
    model, entries = read_config(context.resolved.model), base_entries(context.resolved.model)
    found = choices(hardware, config, model, parameters=_count(entries), held=_held(model, entries))
    title = f"What {hardware} would take, of each device's {hardware.device.memory_gib:.0f} GiB"
    console.print(table([choice.row() for choice in found], title=title))
    flops = None if needs_gamma(context) else foresee(context, tokens, steps).flops
    said = advice(hardware, found, config, flops=flops)
    console.print(f"[bold]hardware:[/] {escape(said)}", highlight=False, soft_wrap=True)


def _count(entries: Sequence[TensorEntry]) -> int:
    return sum(entry.elements for entry in entries)


def _held(config: JsonObject, entries: Sequence[TensorEntry]) -> int:
    """Return the weights of all matrices but those of a row for each word."""
    words = text_config(config).get("vocab_size")
    return _count([e for e in entries if len(e.shape) == 2 and words not in e.shape])


def _print_verdict(context: Context, tokens: TokenFile, steps: list[int], console: Console) -> None:
    verdict = "verdict"
    if not needs_gamma(context) and (idle := without_update(context, steps)):
        verdict, said = "[yellow]verdict[/]", f"ready, but {idle}"
    elif needs_gamma(context):
        said = "ready; time and disk depend on the partition, which `sdpo run` makes"
    else:
        said = foresee(context, tokens, steps).sentence()
        if idle := updates_at_rate_0(context, steps):
            console.print(f"[yellow]warning:[/] {escape(idle)}", highlight=False, soft_wrap=True)
    console.print(f"[bold]{verdict}:[/] {escape(said)}", highlight=False, soft_wrap=True)


def _source_rows(data: DataOutputs, reserved: ReserveOutputs) -> list[Row]:
    return [
        {
            "source": source.name,
            "read as": f"{source.format}: {source.layout}",
            "rows": source.read,
            "usable": source.kept - sum(reserved.unusable[source.name].values()),
            "reserved": reserved.reserved[source.name],
            "rejected": _counts(source.rejected | reserved.unusable[source.name]),
            "unused columns": ", ".join(source.unused_columns),
        }
        for source in data.sources
    ]


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _print_pair(context: Context, tokens: TokenFile, console: Console) -> None:
    row = int(np.flatnonzero(tokens.usable)[0])
    pair = _decoded(context, tokens.path, row).read(PairViewResult).pair
    _print_side("chosen", pair.prompt, pair.chosen, console)
    _print_side("rejected", pair.prompt, pair.rejected, console)


def _decoded(context: Context, tokens: Path, row: int, *, supervised: bool = False) -> ResultEvent:
    """Return the result of a stage that decodes a row of a token file."""
    return context.stage(
        ViewSpec(
            name="view",
            run=context.run.path,
            model=context.config.model,
            launch=context.config.launch,
            tokenizer=context.resolved.model,
            tokens=tokens,
            row=row,
            supervised=supervised,
        )
    )


def _print_side(name: str, prompt: TextView, view: TextView, console: Console) -> None:
    cut = " (truncated)" if view.truncated else ""
    title = f"{name}: {prompt.tokens} + {view.tokens} tokens scored{cut}"
    before = escape(_shortened(prompt.text))
    body = f"[dim]{before}[/][bold red]│[/]{escape(_shortened(view.text))}"
    ends = f"last tokens: {' '.join(view.last)}"
    console.print(Panel(body, title=title, subtitle=escape(ends), title_align="left"))


def _print_supervised(context: Context, console: Console) -> None:
    """Print how many of the supervised source's examples are used, how long, and one decoded."""
    left = examples_left(context)
    if left is None:
        return
    file = SupervisedTokenFile.open(tokens_path(context, "supervised"))
    sequence = (file.prompt_lengths + file.completion_lengths)[left.rows]
    row: Row = {
        "rows": left.read,
        "usable": left.usable,
        "trained on": len(left.rows),
        "rejected": _counts(left.rejected),
        "median": round(float(np.median(sequence))),
        "p95": round(float(np.quantile(sequence, 0.95))),
        "max": int(sequence.max()),
    }
    console.print(table([row], title="Supervised data, lengths in tokens"))
    decoded = _decoded(context, file.path, int(left.rows[0]), supervised=True)
    example = decoded.read(ExampleViewResult).example
    _print_side("supervised", example.prompt, example.completion, console)


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    half = _SHOWN_CHARS // 2
    return f"{text[:half]} […{len(text) - _SHOWN_CHARS} characters…] {text[-half:]}"


def _length_rows(lengths: LengthSummary) -> list[Row]:
    return [
        {
            "of": name,
            "median": round(quantiles.median),
            "p95": round(quantiles.p95),
            "max": quantiles.maximum,
        }
        for name in ("prompt", "chosen", "rejected", "sequence")
        for quantiles in [getattr(lengths, name)]
    ]


def _step_row(context: Context, tokens: TokenFile, number: int) -> Row:
    """Return a row of the table of steps.

    ``tokens``: those of one pass over both sequences of every pair, with the prompt in each.
    """
    training = context.config.training_of(number)
    rows = planned(context.run).rows_of(number)
    sides = tokens.chosen_lengths[rows] + tokens.rejected_lengths[rows]
    steps = optimizer_steps(
        len(rows),
        batch_size=training.batch_size,
        epochs=training.epochs,
        max_steps=training.max_steps,
    )
    return {
        "step": number,
        "pairs": len(rows),
        "tokens": int((2 * tokens.prompt_lengths[rows] + sides).sum()),
        "optimizer steps": steps,
        "objective": describe(training.model_dump()),
        "reference": effective_reference(training),
        "target": training.target,
        "learning rate": f"{training.learning_rate:g}",
    }
