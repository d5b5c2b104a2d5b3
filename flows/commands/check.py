"""``sdpo check``: everything a person should see before money is spent."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from flows.commands.memory import estimate_memory
from flows.commands.run import print_plan_notes, scratch_run
from flows.show.console import table
from sdpo.chain.context import Context
from sdpo.chain.data import prepare_data
from sdpo.chain.plan import check, needs_gamma, partition
from sdpo.chain.reserve import reserve
from sdpo.chain.tokens import tokenise
from sdpo.config import RunConfig
from sdpo.config.automatic import optimizer_steps
from sdpo.config.reference_choice import effective_reference
from sdpo.identity.model_digest import tensor_entries
from sdpo.identity.model_folder import read_config, unused_files
from sdpo.objectives import describe
from sdpo.processes.stage_specs import ViewSpec
from sdpo.system.files import read_json
from sdpo.tokens.token_file import LengthSummary, TokenFile

_SHOWN_CHARS = 1200


def check_recipe(config: RunConfig, *, console: Console) -> None:
    """Prepare and tokenise the data in a scratch run and print what a run would work with.

    Raises:
        UserError: what the run itself would refuse.
    """
    with scratch_run(config, console=console) as context:
        data = prepare_data(context)
        tokens = TokenFile.open(tokenise(context))
        record = reserve(context)
        console.print(table(_source_rows(data["outputs"], record["outputs"]), title="Data"))
        code = config.model.trust_remote_code
        if unused := unused_files(context.resolved.model, code=code):
            console.print(
                f"in the model's folder, and not used: {escape(', '.join(unused))}",
                highlight=False,
                soft_wrap=True,
            )
        _print_pair(context, tokens, console)
        lengths = tokens.length_summary()
        console.print(table(_length_rows(lengths), title="Lengths, in tokens"))
        console.print(
            f"truncated: {lengths.chosen_truncated:.1%} of the chosen, "
            f"{lengths.rejected_truncated:.1%} of the rejected completions "
            f"(data.max_length {config.data.max_length})",
            highlight=False,
        )
        check(context)
        if needs_gamma(context):
            console.print("the partition depends on gamma under M_0, which `sdpo run` measures")
        else:
            numbers = [step.step for step in partition(context).steps]
            rows = [_step_row(context, tokens, number) for number in numbers]
            console.print(table(rows, title="Steps"))
            print_plan_notes(read_json(context.run.plan_file), console=console)
        memory = estimate_memory(
            read_config(context.resolved.model),
            parameters=sum(entry.elements for entry in tensor_entries(context.resolved.model)),
            training=context.config.training,
            launch=context.config.launch,
        )
        console.print(table(memory.rows(), title="Memory per device, estimated"))


def _source_rows(data: dict[str, Any], reserved: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "source": source["name"],
            "read as": f"{source['format']}: {source['layout']}",
            "rows": source["read"],
            "usable": source["kept"] - sum(reserved["unusable"][source["name"]].values()),
            "reserved": reserved["reserved"][source["name"]],
            "rejected": _counts(source["rejected"] | reserved["unusable"][source["name"]]),
            "unused columns": ", ".join(source["unused_columns"]),
        }
        for source in data["sources"]
    ]


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _print_pair(context: Context, tokens: TokenFile, console: Console) -> None:
    row = int(np.flatnonzero(tokens.usable)[0])
    spec = ViewSpec(
        name="view",
        run=context.run.path,
        model=context.config.model,
        launch=context.config.launch,
        tokenizer=context.resolved.model,
        tokens=tokens.path,
        row=row,
    )
    pair = context.stage(spec)["pair"]
    prompt = escape(_shortened(pair["prompt"]["text"]))
    for side in ("chosen", "rejected"):
        view = pair[side]
        cut = " (truncated)" if view["truncated"] else ""
        title = f"{side}: {pair['prompt']['tokens']} + {view['tokens']} tokens scored{cut}"
        body = f"[dim]{prompt}[/][bold red]│[/]{escape(_shortened(view['text']))}"
        ends = f"last tokens: {' '.join(view['last'])}"
        console.print(Panel(body, title=title, subtitle=escape(ends), title_align="left"))


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    half = _SHOWN_CHARS // 2
    return f"{text[:half]} […{len(text) - _SHOWN_CHARS} characters…] {text[-half:]}"


def _length_rows(lengths: LengthSummary) -> list[dict[str, Any]]:
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


def _step_row(context: Context, tokens: TokenFile, number: int) -> dict[str, Any]:
    """``tokens`` of a pass: both sequences of every pair, the prompt in each."""
    training = context.config.training_of(number)
    plan = pq.read_table(context.run.plan, columns=["step", "token_row"])
    rows = plan["token_row"].to_numpy()[plan["step"].to_numpy() == number]
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
