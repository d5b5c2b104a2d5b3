"""``sdpo check``: everything a person should see before money is spent."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from flows.commands import print_plan_notes, scratch_run
from flows.console import table
from sdpo.batching import (
    head_rows,
    lane_count,
    micro_batch_tokens,
    optimizer_steps,
    training_lanes,
)
from sdpo.config import RunConfig, TrainingConfig
from sdpo.digest import tensor_entries
from sdpo.files import read_json
from sdpo.model_folder import read_config, text_config, unused_files
from sdpo.nodes import prepare_data, reserve, tokenise
from sdpo.objectives import describe
from sdpo.planning import check, needs_gamma, partition
from sdpo.reference_rules import effective_reference
from sdpo.run import Context
from sdpo.spec import ViewSpec
from sdpo.tokens.store import LengthSummary, TokenFile

_GIB = 2**30
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
        memory = estimate_memory(context, context.config.training)
        if memory.activations_bytes:
            console.print(table(memory.rows(), title="Memory per device, estimated"))
        else:
            console.print("memory: the model's config.json does not say its size in known words")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one device while it trains. Activations are a rule of thumb, the rest is counted."""

    parameters: int
    trained: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    head_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.head_bytes
        )

    def rows(self) -> list[dict[str, Any]]:
        """For a table."""
        parts = {
            f"weights ({self.parameters:,} parameters, fp32)": self.weights_bytes,
            f"gradients ({self.trained:,} trained)": self.gradients_bytes,
            "optimizer state": self.optimizer_bytes,
            "activations": self.activations_bytes,
            "head, in chunks": self.head_bytes,
            "in all": self.total_bytes,
        }
        return [{"what": what, "GiB": f"{size / _GIB:.2f}"} for what, size in parts.items()]


def estimate_memory(context: Context, training: TrainingConfig) -> MemoryEstimate:
    """What training takes on one device, from the model's files and the settings.

    Activations: per token and layer about 14 hidden and 4 feed-forward widths are kept for the
    backward pass (one hidden width with gradient checkpointing), in the arithmetic's precision; on
    a CPU a small model has several micro-batches at a time.
    """
    text = text_config(read_config(context.resolved.model))
    parameters = sum(entry.elements for entry in tensor_entries(context.resolved.model))
    hidden = _width(text, "hidden_size", "n_embd", "d_model")
    layers = _width(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    inner = _width(text, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
    trained = parameters
    if training.lora_r:
        # all-linear: q, k, v, o and three feed-forward matrices of each layer
        trained = layers * training.lora_r * (8 * hidden + 3 * (hidden + inner))
    width = hidden if training.gradient_checkpointing else 14 * hidden + 4 * inner
    launch, bytes_each = context.config.launch, 2 if training.precision == "bf16" else 4
    processes, device = launch.processes, str(launch.device)
    tokens = micro_batch_tokens(training.micro_batch_tokens, device=device)
    lanes = lane_count(parameters, threads=launch.threads, device=device, processes=processes)
    lanes = training_lanes(training, lanes)
    vocabulary = _width(text, "vocab_size") or 1
    sharded = {"deepspeed_zero2": 2, "deepspeed_zero3": 3}.get(launch.strategy, 0)
    states = 2 if training.optimizer == "adamw" else 1
    return MemoryEstimate(
        parameters=parameters,
        trained=trained,
        weights_bytes=4 * parameters // (processes if sharded == 3 else 1),
        gradients_bytes=4 * trained * _copies(lanes) // (processes if sharded else 1),
        optimizer_bytes=4 * states * trained // (processes if sharded else 1),
        activations_bytes=math.ceil(lanes * tokens * layers * width * bytes_each),
        head_bytes=lanes * 3 * 4 * vocabulary * head_rows(vocabulary, device=device),
    )


def _width(text: dict[str, Any], *names: str) -> int:
    """A number of a configuration by the first of its names that is there; 0: by none."""
    found = (value for name in names if isinstance(value := text.get(name), int))
    return max(0, next(found, 0))


def _copies(lanes: int) -> int:
    """Of the gradients: each lane has a sum of its own and those of a micro-batch beside it."""
    return 1 if lanes == 1 else 2 * lanes
