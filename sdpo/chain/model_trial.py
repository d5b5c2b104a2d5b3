"""Try the models before anything is trained: each is loaded and scores two pairs.

So a check also finds what only a loaded model shows: weights that are damaged or missing, code that
would have to be run, a kernel or layout that the architecture does not have. It computes on the
CPU, because the devices may be in use by others.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.other_reference import reference_tokens
from sdpo.chain.plan_check import modules_spec
from sdpo.chain.start_stage import step_spec
from sdpo.chain.step_models import given_model
from sdpo.chain.tokens import tokens_path
from sdpo.config import LaunchConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.identity.model_digest import base_entries
from sdpo.model_names import NamedModel
from sdpo.tokens.token_file import TokenFile

_BYTES_PER_PARAMETER = 6
"""A parameter takes so many bytes: fp32 weights, and a forward pass of one pair besides."""


def try_models(context: Context, steps: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Load M_0, and every model that a step names as its reference, in stages of their own.

    Each scores the shortest and the longest usable pair. Yields each model's name with the reason
    why it cannot be tried here, or "".

    Raises:
        UserError: what a run would end with before its first optimizer step.
        Fault: the stage failed.
    """
    resolved = context.resolved
    start = NamedModel(name="M_0", folder=resolved.model, digest=resolved.inputs["model"])
    models = [(start, tokens_path(context)), *_references(context, steps)]
    weight = max(context.config.training_of(step).router_aux_loss for step in steps)
    for model, tokens in models:
        reason = _why_not(context, model)
        if context.config.launch.shares_weights and model is not start:
            context.stage(modules_spec(context, model.folder, tokens, {}))
        if not reason:
            # A reference needs no routers.
            _try(context, model, tokens, router_aux_loss=weight if model is start else 0.0)
        yield model.name, reason


def _references(context: Context, steps: Sequence[int]) -> list[tuple[NamedModel, Path]]:
    """Return the references that the recipe names, each once, with the tokens that they read.

    :func:`~sdpo.chain.other_reference.check_references` has made the tokens of those whose
    tokenizer differs.
    """
    found: dict[str, tuple[NamedModel, Path]] = {}
    for step in steps:
        training = context.config.training_of(step)
        if effective_reference(training) == "model":
            model = given_model(context, training)
            own = reference_tokens(context, model, step)
            tokens = own[0].out if own else tokens_path(context)
            found.setdefault(model.digest, (model, tokens))
    return list(found.values())


def _why_not(context: Context, model: NamedModel) -> str:
    if context.config.model.attention == "flash_attention_2":
        return "model.attention flash_attention_2 computes on a GPU alone"
    parameters = sum(entry.elements for entry in base_entries(model.folder))
    needed, there = _BYTES_PER_PARAMETER * parameters, psutil.virtual_memory().available
    if needed <= there:
        return ""
    return (
        f"its {parameters:,} parameters take {needed / 2**30:.0f} GiB of memory, and "
        f"{there / 2**30:.0f} are free"
    )


def _try(context: Context, model: NamedModel, tokens: Path, *, router_aux_loss: float) -> None:
    config = context.config
    usable = pq.read_table(context.run.usable)
    lengths = TokenFile.open(tokens).sequence_lengths[usable["token_row"].to_numpy()]
    ends = sorted({int(np.argmin(lengths)), int(np.argmax(lengths))})
    with TemporaryDirectory(dir=context.run.path) as folder:
        few = Path(folder) / "usable.parquet"
        pq.write_table(usable.take(pa.array(ends)), few)
        spec = step_spec(
            context,
            name="try",
            step=0,
            training=config.training.model_copy(update={"router_aux_loss": router_aux_loss}),
            model=model,
            phases=("score_everything",),
        )
        # No cache: what was scored before says nothing of what the folder holds now.
        alone = LaunchConfig(
            device="cpu", strategy="single", threads=config.launch.threads, share_device=True
        )
        update = {
            **{"usable": few, "plan": None, "cache": Path(folder), "launch": alone},
            **{"tokens": tokens, "base": model.folder},
        }
        context.stage(spec.model_copy(update=update))
