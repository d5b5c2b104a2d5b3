"""Define the Prefect flow of a run whose form is the whole recipe.

Top-level groups of the recipe are the flow's parameters, so that they become cards in the UI's form
and a schedule can replace one of them alone.
"""

from prefect import flow
from prefect.runtime import flow_run

from flows.align import align_config
from flows.ui.folder import enter_folder
from flows.ui.form import form
from sdpo.chain.run_chain import ChainResult
from sdpo.config import (
    DataConfig,
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    PartitionConfig,
    ProbeConfig,
    RunConfig,
    StepConfig,
    StoreConfig,
    SupervisedConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.config.load import make_config

_GROUPS = {name: str(field.description) for name, field in RunConfig.model_fields.items()}
_NAME = "Name of the run; empty: that of the run in the UI."


def _run_name() -> str:
    """The recipe's name is also that of the run in the UI; a retry keeps the one it has."""
    return str(flow_run.parameters.get("name") or flow_run.name)


# Parameters are validated by make_config, which says it better.
@form(_GROUPS | {"name": _NAME})
@flow(name="sdpo-align-full", flow_run_name=_run_name, validate_parameters=False)
def align_full(
    name: str = "",
    model: ModelConfig = ModelConfig(),
    data: DataConfig = DataConfig(),
    supervised: SupervisedConfig = SupervisedConfig(),
    partition: PartitionConfig = PartitionConfig(),
    training: TrainingConfig = TrainingConfig(),
    steps: list[StepConfig] = [],  # type: ignore[valid-type]  # noqa: B006 - never mutated
    evaluation: EvaluationConfig = EvaluationConfig(),
    probe: ProbeConfig = ProbeConfig(),
    launch: LaunchConfig = LaunchConfig(),
    store: StoreConfig = StoreConfig(),
    tracking: TrackingConfig = TrackingConfig(),
) -> ChainResult:
    """Align a model in steps: the whole recipe, from preference data to the last step's model."""
    enter_folder()
    config = make_config(
        {
            "name": name or flow_run.name,
            "model": model,
            "data": data,
            "supervised": supervised,
            "partition": partition,
            "training": training,
            "steps": steps,
            "evaluation": evaluation,
            "probe": probe,
            "launch": launch,
            "store": store,
            "tracking": tracking,
        }
    )
    return align_config(config)
