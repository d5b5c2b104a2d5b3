"""Which models a step works with: its reference and its target, by name, folder and digest.

What may be chosen, and what makes no sense, is :mod:`sdpo.config.reference_choice`; this module
says what a choice stands for in a run. A reference that is not the target is scored by a stage of
its own, which ends before the target is loaded: one model in memory at a time. Where every row is
cached, and was checked under these versions, the reference is not loaded at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpo.chain.data import cached_tokens, end_token_ids, tokens_path
from sdpo.chain.open_run import Context
from sdpo.config import RunConfig, TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.data.parquet_columns import rows_of_steps
from sdpo.errors import DataError
from sdpo.identity.payloads import scoring_identities, tokens_identity
from sdpo.inputs.named_models import ReferenceModel
from sdpo.processes.stage_specs import ReferenceSpec, TokeniseSpec
from sdpo.store.logp_cache import LogpCache
from sdpo.system import machine
from sdpo.system.files import digest_of
from sdpo.tokens.token_file import TokenFile


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model of the run or of the recipe. ``tokenizer``: digest of its own where it cuts text into
    other tokens than the run's, else empty."""

    name: str
    folder: Path
    digest: str
    tokenizer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModels:
    """Where a step starts and what it is compared with; ``reference`` None: with nothing."""

    target: NamedModel
    reference: NamedModel | None

    @property
    def agree(self) -> bool:
        """Whether reference and target are one model that reads one text alike, so that their
        log-probs must agree."""
        reference, target = self.reference, self.target
        return reference is not None and (reference.digest, reference.tokenizer) == (
            target.digest,
            target.tokenizer,
        )

    def inputs(self) -> dict[str, str]:
        """Their digests, as a step's identity has them."""
        inputs = {"reference": self.reference.digest} if self.reference else {}
        if self.reference and self.reference.tokenizer:
            inputs["reference_tokenizer"] = self.reference.tokenizer
        return inputs | {"target": self.target.digest}

    def said(
        self, training: TrainingConfig, *, tokens: Path | None = None
    ) -> dict[str, dict[str, str]]:
        """The choices and what they stand for, for the record; ``tokens``: the reference's own."""
        own = {"tokens": tokens.stem} if tokens else {}
        return {
            "reference": {
                "choice": effective_reference(training),
                "name": self.reference.name if self.reference else "none",
                **own,
            },
            "target": {"choice": training.target, "name": self.target.name},
        }


def model_of(context: Context, number: int) -> NamedModel:
    """M_``number``; M_0 is S, or the base model without a supervised stage."""
    if number == 0 and not context.config.supervised.enabled:
        folder, digest = context.resolved.model, context.resolved.inputs["model"]
    else:
        record = context.run.read_record(f"step-{number}")
        assert record is not None, f"M_{number} is made before it is used"
        folder, digest = context.run.model(number), record["outputs"]["model"]
    return NamedModel(name=f"M_{number}", folder=folder, digest=digest)


def target_of(context: Context, step: int, training: TrainingConfig) -> NamedModel:
    """Where training of step ``step`` starts."""
    return model_of(context, 0 if training.target == "base" else step - 1)


def reference_of(context: Context, step: int, training: TrainingConfig) -> NamedModel | None:
    """What the policy of step ``step`` is compared with."""
    match effective_reference(training):
        case "previous":
            return model_of(context, step - 1)
        case "base":
            return model_of(context, 0)
        case "model":
            return _given_model(context, training)
        case "guided":
            return _guide_of(context, step)
        case _:
            return None


def _guide_of(context: Context, step: int) -> NamedModel:
    node = f"guide-{step}"
    record = context.run.read_record(node)
    assert record is not None, "a guide is trained before it is used"
    folder = context.run.path / node / "model"
    return NamedModel(name=node, folder=folder, digest=record["outputs"]["model"])


def _given_model(context: Context, training: TrainingConfig) -> NamedModel:
    key = (training.reference_model, training.reference_revision)
    reference = context.resolved.references[key]
    return NamedModel(
        name=_short_name(training.reference_model),
        folder=reference.folder,
        digest=reference.digest,
        tokenizer=reference.tokenizer,
    )


def _short_name(model: str) -> str:
    """A hub model's name; a folder's; ``<run>/step-<t>`` for a model of a run."""
    path = Path(model)
    if not path.is_absolute():
        return model
    return "/".join(path.parts[-3:-1]) if path.name == "model" else path.name


def reference_tokens(context: Context, reference: NamedModel, step: int) -> TokeniseSpec | None:
    """How the pairs become tokens of a reference that cuts text differently; None where it does
    not."""
    if not reference.tokenizer:
        return None
    data = context.run.read_record("data")
    assert data is not None, "tokens come after data"
    ends = end_token_ids(reference.folder)
    identity = tokens_identity(
        context.config,
        content=data["outputs"]["digest"],
        tokenizer=reference.tokenizer,
        clock=context.clock,
        ends=ends,
    )
    return TokeniseSpec(
        name=f"tokenise-reference-{step}",
        run=context.run.path,
        model=context.config.model.model_copy(update={"chat_template": ""}),
        launch=context.config.launch,
        tokenizer=reference.folder,
        pairs=context.run.pairs,
        out=cached_tokens(context.cache, digest_of(identity)[:32]),
        max_length=context.config.data.max_length,
        clock=context.clock,
        end_token_ids=ends,
    )


def check_readable(context: Context, reference: NamedModel, path: Path, step: int) -> None:
    """Say what a tokenizer of its own means for a step.

    Raises:
        DataError: the reference cannot read some pairs of D_step or the reserve.
    """
    rows, tokens = rows_of(context, step), TokenFile.open(path)
    unusable = rows[~tokens.usable[rows]]
    if len(unusable):
        example = tokens.pair_ids[unusable[0]]
        raise DataError(
            f"{len(unusable)} pairs of D_{step} or the reserve cannot be read by the tokenizer of "
            f"{reference.name}, the reference (for example {example}: {tokens.reasons[example]}): "
            "raise data.max_length, or choose another reference"
        )
    files = (TokenFile.open(tokens_path(context)), tokens)
    sides = [
        side[rows] for file in files for side in (file.chosen_truncated, file.rejected_truncated)
    ]
    cut = int(np.any(sides, axis=0).sum())
    context.listen(
        {
            "event": "warning",
            "message": f"step {step}: {reference.name}, the reference, has a tokenizer of its own, "
            "so statistics per token are not given for it"
            + (f"; {cut} pairs are truncated, at other places than the policy's" if cut else ""),
        }
    )


def rows_of(context: Context, step: int) -> np.ndarray:
    """Token rows that a step compares: the reserve, then D_step, in the plan's order."""
    return rows_of_steps(context.run.plan, 0, step)


def why_score(
    context: Context, reference: NamedModel, tokens: Path, step: int, training: TrainingConfig
) -> str:
    """Why the reference has to be loaded for step ``step``; empty where it has not."""
    config, file = context.config, TokenFile.open(tokens)
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


def reference_spec(models: StepModels, tokens: Path | None) -> ReferenceSpec | None:
    """What the step's stage is told of a reference that is not its target."""
    if models.reference is None or models.agree:
        return None
    return ReferenceSpec(name=models.reference.name, digest=models.reference.digest, tokens=tokens)


def stored_references(
    config: RunConfig, inputs: Mapping[str, str]
) -> dict[tuple[str, str], ReferenceModel]:
    """References that a run's stored recipe names, by the digests that it keeps; none is opened."""
    groups = {"training": config.training}
    groups |= {f"steps.{index}": step for index, step in enumerate(config.steps)}
    found: dict[tuple[str, str], ReferenceModel] = {}
    for where, group in groups.items():
        name = f"reference.{where}"
        if name in inputs:
            model, revision = group.reference_model, group.reference_revision
            found[model, revision] = ReferenceModel(
                folder=Path(model),
                digest=inputs[name],
                tokenizer=inputs.get(f"{name}.tokenizer", ""),
            )
    return found


def guided_training(training: TrainingConfig) -> TrainingConfig:
    """How a guide is trained: as the step, with its own start as reference."""
    settings: dict[str, Any] = {"reference": "previous", "target": "previous"}
    return training.model_copy(update=settings)
