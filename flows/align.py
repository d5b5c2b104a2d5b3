"""The Prefect flow: the same chain, every node a task, its tables as artifacts.

Top-level groups of the recipe are the flow's parameters, so that they become cards in the UI's form
and a schedule can replace one of them alone.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.console import interruption, where_it_stands
from flows.slots import device_slot
from flows.tables import gamma_rows, partition_rows
from partitions import PartitionError
from sdpo.chain import ChainResult, run_chain
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
from sdpo.errors import UserError
from sdpo.events import Event
from sdpo.recipe import make_config

T = TypeVar("T")


def _message_alone(record: logging.LogRecord) -> bool:
    """Leave out the traceback of a mistake whose message says everything."""
    if record.exc_info and isinstance(record.exc_info[1], UserError | PartitionError):
        record.exc_info = None
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_message_alone)


def task_call(name: str, function: Callable[..., T], /, *args: object) -> T:
    """Run a node as a Prefect task: called directly, so that it sees signals in the main thread.

    A node decides by its record whether it is done; Prefect's own cache does not look at the disk.
    """

    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def node() -> T:
        return function(*args)

    return node()


@flow(name="sdpo-align", validate_parameters=True)
def align(
    name: str,
    model: ModelConfig,
    data: DataConfig,
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
    """Align a model in steps; returns the finished run."""
    config = make_config(
        {
            "name": name,
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


def align_config(config: RunConfig) -> ChainResult:
    """The flow's body: the chain with tasks, then its tables. Call it inside a flow run."""
    logger = get_run_logger()

    def listen(event: Event) -> None:
        if event["event"] == "warning":
            logger.warning(event["message"])
        elif event["event"] == "interrupted":
            logger.info(interruption(event))
        elif event["event"] in ("resume", "checkpoint"):
            logger.info(where_it_stands(event))
        elif event["event"] == "node":
            logger.info("%s: %s %s", event["node"], event["status"], event["reason"])

    result = run_chain(config, call=task_call, listen=listen, occupy=device_slot)
    slug = config.name.lower().replace(".", "-").replace("_", "-")
    create_table_artifact(
        partition_rows(result.run), key=f"partition-{slug}", description="Pairs per step and source"
    )
    create_table_artifact(
        gamma_rows(result.run),
        key=f"gamma-{slug}",
        description="gamma = log p(chosen) - log p(rejected), mean per model and probe, in nats",
    )
    return result
