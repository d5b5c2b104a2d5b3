"""Define the settings of processes, devices, folders and trackers."""

from typing import Annotated, Literal

from pydantic import Field

from sdpo.config.annotations import NotIdentity, ReadIf, SpelledOut, Unit
from sdpo.config.group import Group
from sdpo.config.nodes import Launcher, SlurmConfig

LaunchStrategy = Literal[
    "auto", "single", "ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"
]
Offload = Literal["none", "optimizer", "all"]
_NO_REMOTE = ": store.remote is empty"
_NOT_OF_IT = ": launch.launcher is `{value}`"
_PLACE = "which machines have the processes changes no result"


class LaunchConfig(Group):
    """These settings give the processes and devices of the stages."""

    main_setting = "device"

    processes: Annotated[int, Unit("processes"), SpelledOut(of=("step",))] = Field(
        1, ge=1, description="Processes (one per device) of a training stage, on all nodes."
    )
    nodes: Annotated[int, Unit("machines"), NotIdentity(_PLACE)] = Field(
        1, ge=1, description="Machines that share the processes of a training stage evenly."
    )
    launcher: Annotated[Launcher, NotIdentity(_PLACE)] = Field(
        "local",
        description="Who starts the processes: `local`, on this machine; `torchrun`, on machines "
        "where `sdpo node join` runs; `slurm`, by srun in a job or by sbatch. docs/nodes.md.",
    )
    rendezvous: Annotated[
        str,
        ReadIf(settings=("launcher",), equal_to=("torchrun", "slurm"), otherwise=_NOT_OF_IT),
        NotIdentity(_PLACE),
    ] = Field(
        "",
        description="HOST:PORT at which this machine waits for the other nodes; empty: as "
        "MASTER_ADDR and MASTER_PORT say, else this host's name and port 29400; under `slurm` any "
        "free port.",
    )
    slurm: Annotated[
        SlurmConfig,
        ReadIf(settings=("launcher",), equal_to="slurm", otherwise=_NOT_OF_IT),
        NotIdentity(_PLACE),
    ] = Field(SlurmConfig(), description="What jobs of SLURM ask for.")
    strategy: Annotated[LaunchStrategy, SpelledOut(of=("step",))] = Field(
        "auto",
        description="How processes share the work; `auto`: single for one process, else ddp. "
        "docs/strategies.md says what each shares, and what goes with what.",
    )
    offload: Offload = Field(
        "none",
        description="What waits in the machine's memory while a GPU computes: the optimizer's "
        "states, or all weights too.",
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

    @property
    def per_node(self) -> int:
        """Return the processes of each node."""
        return self.processes // self.nodes

    @property
    def alone(self) -> "LaunchConfig":
        """Return the settings of a stage that is one process on one node."""
        return self.model_copy(update={"processes": 1, "nodes": 1, "strategy": "single"})

    @property
    def zero_stage(self) -> int:
        """Return the stage of DeepSpeed's ZeRO; 0 under another strategy."""
        name = "deepspeed_zero"
        return int(self.strategy[-1]) if self.strategy.startswith(name) else 0

    @property
    def shares_weights(self) -> bool:
        """Return whether each process holds a share of the weights alone."""
        return self.strategy in ("fsdp2", "deepspeed_zero3")

    @property
    def of_whole_models(self) -> "LaunchConfig":
        """Return the settings of a stage in which every process holds the whole model."""
        if self.processes == 1:
            return self.alone
        return self.model_copy(update={"strategy": "ddp", "offload": "none"})

    @property
    def by_engine(self) -> bool:
        """Return whether another library holds the weights: then it scores as well as trains."""
        return self.strategy == "fsdp2" or self.zero_stage > 0


class StoreConfig(Group):
    """These settings say where runs and caches are kept. They never count for identity."""

    main_setting = "runs_dir"

    runs_dir: str = Field("runs", title="Folder of the runs", description="Folder of the runs.")
    cache_dir: str = Field(
        "",
        title="Folder of the caches",
        description="Folder of the caches; empty: `cache` beside the runs.",
    )
    remote: str = Field(
        "",
        title="Remote store",
        description="URL of a store that every run is uploaded to while it goes on, so that "
        "another machine can take it up: s3://bucket/prefix, file:///path; empty: none. "
        "docs/remote.md has the rest.",
    )
    remote_states: Annotated[bool, ReadIf(settings=("remote",), otherwise=_NO_REMOTE)] = Field(
        False,
        title="Upload resume states",
        description="Upload the newest resume state of a step too: another machine loses no more "
        "than what was done since, and not the step.",
    )
    remote_silence_s: Annotated[
        float, Unit("seconds"), ReadIf(settings=("remote",), otherwise=_NO_REMOTE)
    ] = Field(
        60.0,
        ge=2,
        title="Silence of a dead owner",
        description="A machine that has told the store nothing for so long has lost its run to "
        "who takes it up.",
    )


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class TrackingConfig(Group):
    """These settings say where metrics go besides the run's own `metrics.jsonl`."""

    tools: list[Tracker] = Field(
        [],
        description="Trackers that get the curve of every step, and in the end gamma, probes, KL "
        "and evaluations of every model; each must be installed.",
    )
    project: str = Field("sdpo", description="Project name for the trackers.")
    report: Annotated[
        bool, ReadIf(settings=("tools",), otherwise=": no tracker is named in tracking.tools")
    ] = Field(
        True,
        description="They get `report.html` as well, which shows pairs and completions in words; "
        "off: numbers alone leave this machine.",
    )
