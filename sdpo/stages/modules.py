"""Try what steps ask of a model's modules, on a model without weights, as a stage."""

from typing import TYPE_CHECKING

import numpy as np

from sdpo.config import TrainingConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.identity.adapter_folder import base_folder, is_adapter
from sdpo.model.by_length import one_set_of_frequencies, other_frequencies
from sdpo.model.handed_on import check_form
from sdpo.model.policy import add_adapters, empty_policy
from sdpo.model.published_tensors import other_tensors, reads_as_it_is
from sdpo.model.routers import has_routers, no_loss
from sdpo.processes.stage_results import TrialResult
from sdpo.processes.stage_specs import ModulesSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(spec: ModulesSpec) -> TrialResult:
    """Try each step's adapters on the model in ``spec.source``, its routers, and the launch.

    Raises:
        ConfigError: a module cannot have an adapter, or ranks cannot share the model's weights.
        ModelError: it has no routers, whose loss a step wants. Both name the step.
    """
    policy = _empty(spec)
    lengths = np.array(spec.lengths)
    kind, strategy = type(policy).__name__, spec.launch.strategy
    if spec.launch.shares_weights and not one_set_of_frequencies(policy, lengths):
        raise ConfigError(other_frequencies(kind, strategy))
    if strategy == "fsdp2" and not reads_as_it_is(policy):
        raise ModelError(other_tensors(kind))
    for step, training in spec.trainings.items():
        try:
            _try(policy, training)
            _try_handed_on(spec, training)
        except (ConfigError, ModelError) as error:
            raise type(error)(f"step {step}: {error}") from error
        if training.lora_r:
            policy = _empty(spec)  # without these adapters
    return TrialResult(steps=list(spec.trainings))


def _empty(spec: ModulesSpec) -> "PreTrainedModel":
    """Return the modules of the model that adapters of a step stand on."""
    return empty_policy(base_folder(spec.source), model=spec.model)


def _try_handed_on(spec: ModulesSpec, training: TrainingConfig) -> None:
    """Compare the adapter that the run starts from, if it does, with what a step goes on with."""
    if training.hands_on and is_adapter(spec.source):
        start = empty_policy(spec.source, model=spec.model)
        check_form(start, add_adapters(_empty(spec), training))


def _try(policy: "PreTrainedModel", training: TrainingConfig) -> None:
    if training.router_aux_loss and not has_routers(policy):
        raise ModelError(no_loss(policy, "it is no mixture of experts whose routers can be seen"))
    if training.lora_r:
        add_adapters(policy, training)
