"""The stage that tries the adapters of steps, on a model without weights."""

from sdpo.errors import ConfigError
from sdpo.model.policy import add_adapters, empty_policy
from sdpo.processes.stage_results import TrialResult
from sdpo.processes.stage_specs import AdaptersSpec


def run(spec: AdaptersSpec) -> TrialResult:
    """Give each step's adapters to the modules of ``spec.source``.

    Raises:
        ConfigError: a module cannot have one; names the step.
    """
    for step, training in spec.trainings.items():
        try:
            add_adapters(empty_policy(spec.source, model=spec.model), training)
        except ConfigError as error:
            raise ConfigError(f"step {step}: {error}") from error
    return TrialResult(steps=list(spec.trainings))
