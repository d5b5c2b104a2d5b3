"""Say which models a step works with: its reference and its target, by name, folder and digest.

What may be chosen, and what makes no sense, is told by :mod:`sdpo.config.reference_choice`; this
module says what a choice stands for in a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.chain.context import Context
from sdpo.config import TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.model_names import ModelName, NamedModel
from sdpo.store.records import MergedOutputs, merged_node


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModels:
    """A step starts from ``target`` and is compared with ``reference``; None: with nothing."""

    target: NamedModel
    reference: NamedModel | None

    @property
    def agree(self) -> bool:
        """Return whether reference and target are one model that reads text alike.

        Their log-probs must then agree.
        """
        reference, target = self.reference, self.target
        return reference is not None and (reference.digest, reference.tokenizer) == (
            target.digest,
            target.tokenizer,
        )

    def inputs(self) -> dict[str, str]:
        """Return their digests, as a step's identity has them."""
        inputs = {"reference": self.reference.digest} if self.reference else {}
        if self.reference and self.reference.tokenizer:
            inputs["reference_tokenizer"] = self.reference.tokenizer
        return inputs | {"target": self.target.digest}

    def said(
        self, training: TrainingConfig, *, tokens: Sequence[Path] = ()
    ) -> dict[str, dict[str, str]]:
        """Return the choices and what they stand for, for the record.

        ``tokens`` are the reference's own token files, where it has some.
        """
        own = {"tokens": " ".join(path.stem for path in tokens)} if tokens else {}
        return {
            "reference": {
                "choice": effective_reference(training),
                "name": self.reference.name if self.reference else "none",
                **own,
            },
            "target": {"choice": training.target, "name": self.target.name},
        }


def model_of(context: Context, number: int) -> NamedModel:
    """Return M_``number``; M_0 is S, or the base model without a supervised stage."""
    if number == 0 and not context.config.supervised.enabled:
        folder, digest = context.resolved.model, context.resolved.inputs["model"]
    else:
        record = context.run.step_record(f"step-{number}")
        folder, digest = context.run.model(number), record.model
    return NamedModel(name=str(ModelName(number)), folder=folder, digest=digest)


def target_of(context: Context, step: int, training: TrainingConfig) -> NamedModel:
    """Return the model that training of step ``step`` starts from."""
    return model_of(context, 0 if training.target == "base" else step - 1)


def reference_of(context: Context, step: int, training: TrainingConfig) -> NamedModel | None:
    """Return the model that the policy of step ``step`` is compared with; None: there is none."""
    match effective_reference(training):
        case "previous":
            return model_of(context, step - 1)
        case "base":
            return model_of(context, 0)
        case "model":
            return given_model(context, training)
        case "guided":
            return _guide_of(context, step)
        case "merged":
            return merged_of(context, step)
        case _:
            return None


def _guide_of(context: Context, step: int) -> NamedModel:
    node = f"guide-{step}"
    record = context.run.step_record(node)
    folder = context.run.path / node / "model"
    return NamedModel(name=node, folder=folder, digest=record.model)


def merged_of(context: Context, step: int) -> NamedModel:
    """Return the average of M_0..M_{step-1}, which must have been made; of M_0 alone it is M_0."""
    if step == 1:
        return model_of(context, 0)
    node = merged_node(step)
    digest = context.run.record(node).read_outputs(MergedOutputs).model
    return NamedModel(name=node, folder=context.run.path / node / "model", digest=digest)


def given_model(context: Context, training: TrainingConfig) -> NamedModel:
    """Return the model that the recipe names as the reference of a step."""
    return context.resolved.references[training.reference_model, training.reference_revision]


def guided_training(training: TrainingConfig) -> TrainingConfig:
    """Return how a guide is trained: like its step, with its own start as reference."""
    return training.model_copy(update={"reference": "previous", "target": "previous"})
