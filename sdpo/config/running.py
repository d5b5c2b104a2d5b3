"""Define the settings of processes, devices, folders and trackers."""

from typing import Annotated, Literal

from pydantic import Field

from sdpo.config.annotations import NotIdentity, SpelledOut, Unit
from sdpo.config.group import Group

LaunchStrategy = Literal["auto", "single", "ddp", "deepspeed_zero2", "deepspeed_zero3"]


class LaunchConfig(Group):
    """These settings give the processes and devices of the stages."""

    main_setting = "device"

    processes: Annotated[int, Unit("processes"), SpelledOut(of=("step",))] = Field(
        1, ge=1, description="Processes (one per device) of a training stage."
    )
    strategy: Annotated[LaunchStrategy, SpelledOut(of=("step",))] = Field(
        "auto",
        description="How processes share the work; `auto`: single for one process, else ddp.",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], SpelledOut(of=("step",))] = Field(
        "auto", description="Device of the stages."
    )
    threads: Annotated[int, Unit("threads"), SpelledOut(of=("step",))] = Field(
        0, ge=0, description="CPU threads of each process; 0: cores divided by processes."
    )
    share_device: Annotated[bool, NotIdentity("who waits for the device changes no result")] = (
        Field(
            False,
            description="Let stages of several runs use the device at once; otherwise the next one "
            "waits until the device is free.",
        )
    )


class StoreConfig(Group):
    """These settings say where runs and caches are kept. They never count for identity."""

    main_setting = "runs_dir"

    runs_dir: str = Field("runs", title="Folder of the runs", description="Folder of the runs.")
    cache_dir: str = Field(
        "",
        title="Folder of the caches",
        description="Folder of the caches; empty: `cache` beside the runs.",
    )


class TrackingConfig(Group):
    """These settings say where metrics go besides the run's own `metrics.jsonl`."""

    tools: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [], description="Trackers that accelerate feeds; each must be installed."
    )
    project: str = Field("sdpo", description="Project name for the trackers.")
