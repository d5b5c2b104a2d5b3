"""Try what steps ask of a model's modules, on a model without weights, as a stage."""

from typing import TYPE_CHECKING

import numpy as np

from sdpo.config import TrainingConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.model.by_length import one_set_of_frequencies, other_frequencies
from sdpo.model.policy import add_adapters, empty_policy
from sdpo.model.routers import has_routers, no_loss
from sdpo.processes.stage_results import TrialResult
from sdpo.processes.stage_specs import ModulesSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(spec: ModulesSpec) -> TrialResult:
    """Try each step's adapters on the model in ``spec.source``, its routers, and the launch.

    Raises:
        ConfigError: a module cannot have an adapter, or ZeRO-3 cannot compute the model.
        ModelError: it has no routers, whose loss a step wants. Both name the step.
    """
    policy = empty_policy(spec.source, model=spec.model)
    lengths = np.array(spec.lengths)
    if spec.launch.strategy == "deepspeed_zero3" and not one_set_of_frequencies(policy, lengths):
        raise ConfigError(other_frequencies(type(policy).__name__))
    for step, training in spec.trainings.items():
        try:
            _try(policy, training)
        except (ConfigError, ModelError) as error:
            raise type(error)(f"step {step}: {error}") from error
        if training.lora_r:
            policy = empty_policy(spec.source, model=spec.model)  # without these adapters
    return TrialResult(steps=list(spec.trainings))


def _try(policy: "PreTrainedModel", training: TrainingConfig) -> None:
    if training.router_aux_loss and not has_routers(policy):
        raise ModelError(no_loss(policy, "it is no mixture of experts whose routers can be seen"))
    if training.lora_r:
        add_adapters(policy, training)
