"""Processes, devices, folders and trackers: what never changes a result's identity."""

from typing import Literal

from pydantic import Field

from sdpo.config.group import Group

LaunchStrategy = Literal["auto", "single", "ddp", "deepspeed_zero2", "deepspeed_zero3"]


class LaunchConfig(Group):
    """Processes and devices of the stages."""

    processes: int = Field(1, ge=1, description="Processes (one per device) of a training stage.")
    strategy: LaunchStrategy = Field(
        "auto",
        description="How processes share the work; `auto`: single for one process, else ddp.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the stages.")
    threads: int = Field(
        0, ge=0, description="CPU threads of each process; 0: cores divided by processes."
    )
    share_device: bool = Field(
        False,
        description="Let stages of several runs use the device at once; otherwise the next one "
        "waits until the device is free.",
    )


class StoreConfig(Group):
    """Where runs and caches are kept. Never part of a result's identity."""

    runs_dir: str = Field("runs", description="Folder of the runs.")
    cache_dir: str = Field("", description="Folder of the caches; empty: `cache` beside the runs.")


class TrackingConfig(Group):
    """Where metrics go besides the run's own `metrics.jsonl`."""

    tools: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [], description="Trackers that accelerate feeds; each must be installed."
    )
    project: str = Field("sdpo", description="Project name for the trackers.")
