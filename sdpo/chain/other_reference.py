"""Prepare a reference that is not the target: what it reads, whether it is loaded, its stage.

It is scored by a stage of its own, which ends before the target is loaded: one model in memory at a
time. Where every row is cached, and was checked under these versions, it is not loaded at all.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sdpo.chain.context import Context
from sdpo.chain.execute import execute
from sdpo.chain.node import Cached, Errand, Part
from sdpo.chain.start_stage import step_spec
from sdpo.chain.step_models import StepModels, given_model
from sdpo.chain.tokens import end_token_ids, token_files, token_files_up_to
from sdpo.config import TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.data.parquet_columns import Columns
from sdpo.errors import DataError
from sdpo.events import WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import tokens_identity
from sdpo.identity.scoring import scoring_identities
from sdpo.model_names import NamedModel
from sdpo.processes.stage_specs import ReferenceSpec, TokeniseSpec
from sdpo.store.logp_cache import LogpCache
from sdpo.store.records import DataOutputs
from sdpo.store.step_data import planned, step_data
from sdpo.store.token_cache import cached_tokens, token_fault
from sdpo.system import machine
from sdpo.system.files import file_digest
from sdpo.system.words import be, counted
from sdpo.tokens.token_file import TokenFile


def scored_reference(
    context: Context, step: int, training: TrainingConfig, models: StepModels
) -> list[Part]:
    """Return the parts that get a reference other than the target cached and checked for a step.

    They are its tokens, where it cuts text differently, and its scoring; none where it is the
    target.
    """
    reference = models.reference
    if reference is None or models.agree:
        return []
    own = reference_tokens(context, reference, step)
    tokens = [spec.out for spec in own] or token_files_up_to(context, step)

    def score(_locks: Sequence[int]) -> None:
        spec = step_spec(
            context,
            name=f"reference-{step}",
            step=step,
            training=training,
            model=reference,
            phases=("score_as_reference",),
        )
        cut = [
            data.model_copy(update={"tokens": path})
            for data, path in zip(spec.own, tokens[1:], strict=True)
        ]
        # The reference pads with a token of its own vocabulary.
        update = {"tokens": tokens[0], "own": tuple(cut), "base": reference.folder}
        context.stage(spec.model_copy(update=update))

    def fault() -> str:
        missing = next(filter(None, (token_fault(spec.out) for spec in own)), "")
        return missing or why_score(context, reference, tokens, step, training)

    parts: list[Part] = []
    if own:
        rows = rows_of(context, step)
        parts = [
            *(token_files(context, spec, name=spec.name) for spec in own),
            Errand(do=lambda: check_readable(context, reference, tokens, rows, step=step)),
        ]
    given = reference.digest in context.resolved.inputs.values()
    made_by = reference.name.replace("M_", "step-")
    name = f"reference-{step}"
    inputs = () if given else (made_by,)
    return [*parts, Cached(name=name, inputs=inputs, fault=fault, make=score)]


def reference_tokens(context: Context, reference: NamedModel, step: int) -> list[TokeniseSpec]:
    """Return how pairs become tokens of a reference that cuts text differently; else none.

    They are the run's pairs, then those that steps up to ``step`` have of their own.
    """
    if not reference.tokenizer:
        return []
    run = context.run
    specs = [
        _cut_by(
            context,
            reference,
            name=f"tokenise-reference-{step}",
            pairs=run.pairs,
            content=run.record("data").read_outputs(DataOutputs).digest,
        )
    ]
    for data in step_data(run, last=step):
        name = f"tokenise-reference-{step}-D_{data.step}"
        content = file_digest(data.pairs)
        specs.append(_cut_by(context, reference, name=name, pairs=data.pairs, content=content))
    return specs


def _cut_by(
    context: Context, reference: NamedModel, *, name: str, pairs: Path, content: str
) -> TokeniseSpec:
    """Return how the file ``pairs``, whose digest is ``content``, is cut by the reference."""
    ends = end_token_ids(reference.folder)
    identity = tokens_identity(
        context.config,
        content=content,
        tokenizer=reference.tokenizer,
        clock=context.clock,
        ends=ends,
    )
    return TokeniseSpec(
        name=name,
        run=context.run.path,
        model=context.config.model.model_copy(update={"chat_template": ""}),
        launch=context.config.launch,
        tokenizer=reference.folder,
        pairs=pairs,
        out=cached_tokens(context.cache, digest_of(identity)[:32]),
        max_length=context.config.data.max_length,
        max_prompt_length=context.config.data.max_prompt_length,
        clock=context.clock,
        end_token_ids=ends,
    )


def own_tokens(context: Context, reference: NamedModel, step: int) -> list[Path]:
    """Return the token files of a reference that cuts text differently; none where it does not.

    They are made where they are not in the cache.
    """
    specs = reference_tokens(context, reference, step)
    execute(context, [token_files(context, spec, name=spec.name) for spec in specs])
    return [spec.out for spec in specs]


def check_references(context: Context, steps: Iterable[int]) -> None:
    """Refuse references named by the recipe that cannot read the pairs their steps compare.

    Where nothing is planned yet, they must be able to read every usable pair.

    Raises:
        DataError: as :func:`check_readable`.
    """
    planned = context.run.plan.is_file()
    for step in steps:
        training = context.config.training_of(step)
        if effective_reference(training) == "model":
            reference = given_model(context, training)
            rows = rows_of(context, step) if planned else _usable_rows(context)
            if own := own_tokens(context, reference, step):
                check_readable(context, reference, own, rows, step=step)


def _usable_rows(context: Context) -> np.ndarray:
    return Columns(context.run.usable).numbers("token_row")


def check_readable(
    context: Context, reference: NamedModel, paths: Sequence[Path], rows: np.ndarray, *, step: int
) -> None:
    """Refuse a reference whose own tokenizer cannot read a step's pairs, and warn of what it means.

    ``rows`` are the token rows that the step compares; ``paths`` are the reference's token files.

    Raises:
        DataError: the reference cannot read some pairs of D_step or the reserve.
    """
    tokens = TokenFile.open(*paths)
    unusable = rows[~tokens.usable[rows]]
    if len(unusable):
        reason, detail = next((r, d) for row, r, d in tokens.rejected() if row == unusable[0])
        raise DataError(
            f"{counted(len(unusable), 'pair')} of D_{step} or the reserve cannot be read by the "
            f"tokenizer of {reference.name}, the reference (for example "
            f"{tokens.pair_id(int(unusable[0]))}, {reason}: {detail}). Or choose another reference"
        )
    files = (TokenFile.open(*token_files_up_to(context, step)), tokens)
    sides = [
        side[rows] for file in files for side in (file.chosen_truncated, file.rejected_truncated)
    ]
    cut = int(np.any(sides, axis=0).sum())
    context.listen(
        WarningEvent(
            message=f"step {step}: {reference.name}, the reference, has a tokenizer of its own, "
            "so statistics per token are not given for it"
            + (
                f"; {counted(cut, 'pair')} {be(cut)} truncated, at other places than the policy's"
                if cut
                else ""
            )
        )
    )


def rows_of(context: Context, step: int) -> np.ndarray:
    """Return the token rows that a step compares: the reserve, then D_step, in the plan's order."""
    return planned(context.run, last=step).rows_of(0, step)


def why_score(
    context: Context,
    reference: NamedModel,
    tokens: Sequence[Path],
    step: int,
    training: TrainingConfig,
) -> str:
    """Return why the reference has to be loaded for step ``step``; empty where it need not be."""
    config, file = context.config, TokenFile.open(*tokens)
    digests = file.digests(rows_of(context, step))
    keys = scoring_identities(
        reference.digest, training=training, launch=config.launch, model=config.model
    )
    caches = [LogpCache(context.cache, key) for key in keys]
    missing = min(int(np.count_nonzero(~cache.lookup(digests).present)) for cache in caches)
    if missing:
        return f"{missing} of {len(digests)} rows are not cached"
    if not any(cache.check_of(digests, software=machine.versions()) for cache in caches):
        return "its cached rows were not checked under these versions"
    return ""


def reference_spec(context: Context, step: int, models: StepModels) -> ReferenceSpec | None:
    """Return what the step's stage is told of a reference that is not its target; None: it is."""
    if models.reference is None or models.agree:
        return None
    tokens = tuple(spec.out for spec in reference_tokens(context, models.reference, step))
    return ReferenceSpec(name=models.reference.name, digest=models.reference.digest, tokens=tokens)
