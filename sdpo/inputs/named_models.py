"""Locate references that the recipe names, and refuse those that cannot serve.

They are known by digest. One with the run's own vocabulary reads the same token ids. One with
another gets the text in its own tokens, which only objectives on summed log-probs can use.
"""

from collections.abc import Mapping
from pathlib import Path

from sdpo.config import RunConfig, TrainingConfig
from sdpo.config.reference_choice import effective_reference, is_length_normalised
from sdpo.errors import ConfigError
from sdpo.identity.model_digest import model_digest
from sdpo.identity.tokenizer_digest import tokenizer_digest, vocabulary_digest
from sdpo.inputs.locate import model_folder, model_name
from sdpo.model_names import NamedModel


def locate_references(
    config: RunConfig, *, model: Path, cache: Path
) -> tuple[RunConfig, dict[tuple[str, str], NamedModel], dict[str, str]]:
    """Locate the reference models that ``config`` names.

    Returns ``config`` with them located; the models by name and revision; and their digests by
    their names in a run's inputs.

    Raises:
        ModelError: one is not there, or is no model folder.
        ConfigError: one has another vocabulary, and the objective needs log-probs per token.
    """
    found: dict[tuple[str, str], NamedModel] = {}
    inputs: dict[str, str] = {}

    def locate(training: TrainingConfig, where: str) -> dict[str, str]:
        """Return the model's name and revision as they are stored, for a group that names one."""
        given = config.model.model_copy(
            update={
                "name_or_path": training.reference_model,
                "revision": training.reference_revision,
            }
        )
        folder = model_folder(given, cache=cache, where=f"{where}.reference_model")
        key = model_name(given, folder)
        found[key["name_or_path"], key["revision"]] = reference = _reference_model(
            key["name_or_path"], folder, model, precision=config.model.base_precision
        )
        inputs[f"reference.{where}"] = reference.digest
        if reference.tokenizer:
            inputs[f"reference.{where}.tokenizer"] = reference.tokenizer
        return {"reference_model": key["name_or_path"], "reference_revision": key["revision"]}

    training, steps = config.training, list(config.steps)
    numbers = range(1, len(steps) + 1)
    inherited = [not steps[number - 1].reference_model for number in numbers]  # type: ignore[attr-defined]
    users = [training, *(config.training_of(n) for n in numbers if inherited[n - 1])]
    update: dict[str, object] = {}
    if any(effective_reference(user) == "model" for user in users):
        update["training"] = training.model_copy(update=locate(training, "training"))
    for number in numbers:
        own = config.training_of(number)
        if effective_reference(own) == "model" and not inherited[number - 1]:
            revision = steps[number - 1].reference_revision or ""  # type: ignore[attr-defined]
            own = own.model_copy(update={"reference_revision": revision})
            stored = locate(own, f"steps.{number - 1}")
            steps[number - 1] = steps[number - 1].model_copy(update=stored)  # type: ignore[attr-defined]
    located = config.model_copy(update=update | {"steps": steps})
    for where, user in located.trainings.items():
        _check_vocabulary(user, found, where)
    return located, found, inputs


def _reference_model(given: str, folder: Path, model: Path, *, precision: str) -> NamedModel:
    same = vocabulary_digest(folder) == vocabulary_digest(model)
    return NamedModel(
        name=_short_name(given),
        folder=folder,
        digest=model_digest(folder, precision=precision),
        tokenizer="" if same else tokenizer_digest(folder),
    )


def _short_name(model: str) -> str:
    """Return a hub model's name, a folder's, or ``<run>/step-<t>`` for a model of a run."""
    path = Path(model)
    if not path.is_absolute():
        return model
    return "/".join(path.parts[-3:-1]) if path.name == "model" else path.name


def _check_vocabulary(
    training: TrainingConfig, references: Mapping[tuple[str, str], NamedModel], where: str
) -> None:
    reference = references.get((training.reference_model, training.reference_revision))
    if effective_reference(training) != "model" or reference is None or not reference.tokenizer:
        return
    if is_length_normalised(training.objective):
        raise ConfigError(
            f"{where}.reference_model: {training.reference_model} has another vocabulary than the "
            f"run's model, so its tokens are not the policy's, and objective {training.objective} "
            "divides by their number: use an objective on summed log-probs (dpo, ipo_sum), or a "
            "reference with the same vocabulary"
        )


def stored_references(
    config: RunConfig, inputs: Mapping[str, str]
) -> dict[tuple[str, str], NamedModel]:
    """Return the references of a stored recipe, by the digests that it keeps; none is opened."""
    groups = {"training": config.training}
    groups |= {f"steps.{index}": step for index, step in enumerate(config.steps)}
    found: dict[tuple[str, str], NamedModel] = {}
    for where, group in groups.items():
        name = f"reference.{where}"
        if name in inputs:
            model, revision = group.reference_model, group.reference_revision
            found[model, revision] = NamedModel(
                name=_short_name(model),
                folder=Path(model),
                digest=inputs[name],
                tokenizer=inputs.get(f"{name}.tokenizer", ""),
            )
    return found
