"""Say what a recipe would take of devices that are not here: memory for each strategy, and hours.

Memory is that of :mod:`flows.commands.memory`, for each strategy, offload and form of training that
the settings allow. A micro-batch is cut to what is left of a device, so a choice fits where the
longest pair does. Hours are operations over a device's speed, taken to grow with the devices.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from flows.commands.between_nodes import sent_bytes
from flows.commands.memory import MemoryEstimate, estimate_memory
from flows.show.console import Row
from sdpo.config import LaunchConfig, RunConfig, TrainingConfig
from sdpo.config.automatic import GPU_MICRO_BATCH_TOKENS
from sdpo.config.impossible import impossible_held_shares, impossible_launch
from sdpo.config.running import LaunchStrategy, Offload
from sdpo.errors import ConfigError
from sdpo.report.tables import duration
from sdpo.system.json_values import JsonObject
from sdpo.system.nearby import near_name

_GIB = 2**30
_USABLE = 0.92
"""So much of a device's memory is left for a training: the rest is CUDA's own, and what allocation
in pieces leaves between them."""
_MEASURED_SHARE = 400 / 765
"""Useful operations of a training over those of bf16 matrix products, both of an H200."""
_MOST = 16
"""A machine has so many devices at most."""
_RANK = 16
"""The rank of adapters where the recipe has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of GPU has this memory, in GiB, and does so many bf16 matrix operations a second.

    ``measured``: the number was measured by this project (docs/benchmarks.md), else its maker
    published it, without sparsity.
    """

    memory_gib: float
    flops: float
    measured: bool = False

    @property
    def useful_flops(self) -> float:
        """Return the operations a second that a training makes use of.

        Of what a maker publishes matrix products reach what they reach on the device that was
        measured: 765 of 989.
        """
        reached = 1.0 if self.measured else 765 / 989
        return self.flops * reached * _MEASURED_SHARE


DEVICES: Mapping[str, Device] = {
    "B200": Device(memory_gib=179.0, flops=2250e12),
    "H200": Device(memory_gib=139.8, flops=765e12, measured=True),
    "H100": Device(memory_gib=79.1, flops=989e12),
    "A100-80": Device(memory_gib=79.1, flops=312e12),
    "A100-40": Device(memory_gib=39.4, flops=312e12),
    "L40S": Device(memory_gib=44.4, flops=362e12),
    "A10G": Device(memory_gib=22.0, flops=70e12),
    "L4": Device(memory_gib=22.0, flops=121e12),
    "RTX4090": Device(memory_gib=23.5, flops=165e12),
    "RTX3090": Device(memory_gib=23.5, flops=71e12),
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """These devices, of one kind: ``count`` in each of ``nodes`` machines."""

    count: int
    name: str
    nodes: int = 1

    @property
    def all(self) -> int:
        """Return the number of devices of all machines."""
        return self.count * self.nodes

    @property
    def device(self) -> Device:
        """Return what one of them is."""
        return DEVICES[self.name]

    def __str__(self) -> str:
        each = f"{self.count}x{self.name}"
        return each if self.nodes == 1 else f"{self.nodes} nodes of {each}"


def hardware_of(text: str, *, nodes: int = 1) -> Hardware:
    """Return what ``8xH100`` stands for, in each of ``nodes`` machines.

    Raises:
        ConfigError: it has another form, or the device is not known.
    """
    if not text:
        raise ConfigError("--nodes says how many machines have what --hardware names, as 8xH100")
    found = re.fullmatch(r"(?:(\d{1,3})\s*[x*])?\s*([A-Za-z][\w-]*)", text.strip())
    if not found or not 1 <= int(found[1] or 1) <= _MOST:
        raise ConfigError(
            f"--hardware {text}: write a number from 1 to {_MOST} and a device, as 8xH100: those "
            "of one machine (--nodes says of how many)"
        )
    names = {name.lower(): name for name in DEVICES}
    name = names.get(found[2].lower())
    if name is None:
        near = near_name(found[2].upper(), list(DEVICES))
        hint = f" (did you mean {near}?)" if near else ""
        raise ConfigError(
            f"--hardware {text}: {found[2]} is not known{hint}; known are {', '.join(DEVICES)}"
        )
    return Hardware(int(found[1] or 1), name, nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A choice is a form of training under a strategy, with what it takes of each device.

    ``fixed_bytes``: weights, gradients, states and the head; ``token_bytes``: of each token of a
    micro-batch, None where the architecture does not say; ``host_bytes``: of a machine's memory,
    for all its devices. ``tokens`` of a micro-batch fit; ``needed`` are those of the longest pair.
    ``sent_bytes``: what a machine sends to others in an optimizer step of one micro-batch, None
    where there are no others.
    """

    trains: str
    strategy: LaunchStrategy
    offload: Offload
    fixed_bytes: int
    token_bytes: float | None
    host_bytes: int
    tokens: int
    needed: int
    sent_bytes: int | None = None

    @property
    def fits(self) -> bool:
        """Return whether the longest pair fits on a device."""
        return self.tokens >= self.needed

    def row(self) -> Row:
        """Return what a table shows of it."""
        per_token = "not known" if self.token_bytes is None else f"{self.token_bytes / 2**20:.2f}"
        sent = {} if self.sent_bytes is None else {"GiB sent": f"{self.sent_bytes / _GIB:.2f}"}
        return {
            "trains": self.trains,
            "launch.strategy": self.strategy,
            "launch.offload": self.offload,
            "GiB, fixed": f"{self.fixed_bytes / _GIB:.1f}",
            "MiB a token": per_token,
            "tokens that fit": self.tokens if self.fits else "none",
            "host GiB": f"{self.host_bytes / _GIB:.0f}" if self.host_bytes else "",
            **sent,
            "fits": "yes" if self.fits else "no",
        }


def choices(
    hardware: Hardware,
    config: RunConfig,
    model: JsonObject,
    *,
    parameters: int,
    held: int,
) -> list[Choice]:
    """Return every choice that the settings allow on ``hardware``.

    ``model`` is the model's ``config.json``; ``held`` the number of weights in linear layers.
    """
    return [
        _choice(hardware, config, model, form, launch, parameters=parameters, held=held)
        for form in _forms(config)
        for launch in _launches(hardware, form)
    ]


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    training: TrainingConfig
    base_precision: str


def _forms(config: RunConfig) -> Iterator[_Form]:
    """Yield what can be trained: all weights, or adapters over a base in each precision."""
    precision = "bf16" if config.training.precision == "auto" else config.training.precision
    common = config.training.model_copy(update={"precision": precision})
    yield _Form("all weights", common.model_copy(update={"lora_r": 0}), "fp32")
    adapters = common.model_copy(
        update={"lora_r": config.training.lora_r or _RANK, "lora_handoff": "continue"}
    )
    for base in ("fp32", "bf16", "nf4"):
        yield _Form(f"adapters over {base}", adapters, base)


def _launches(hardware: Hardware, form: _Form) -> Iterator[LaunchConfig]:
    for strategy in get_args(LaunchStrategy):
        for offload in get_args(Offload):
            if strategy == "auto" or (strategy == "ddp" and hardware.all == 1):
                continue
            launch = LaunchConfig(
                device="cuda",
                processes=hardware.all,
                nodes=hardware.nodes,
                launcher="local" if hardware.nodes == 1 else "torchrun",
                strategy=strategy,
                offload=offload,
                threads=1,
            )
            problems = impossible_launch(launch, {"training": form.training})
            if not problems + impossible_held_shares(form.base_precision, launch):
                yield launch


def _choice(
    hardware: Hardware,
    config: RunConfig,
    model: JsonObject,
    form: _Form,
    launch: LaunchConfig,
    *,
    parameters: int,
    held: int,
) -> Choice:
    memory = int(hardware.device.memory_gib * _GIB)

    def estimate(launch: LaunchConfig) -> MemoryEstimate:
        return estimate_memory(
            model,
            parameters=parameters,
            training=form.training.model_copy(update={"micro_batch_tokens": 1000}),
            launch=launch,
            held=held if form.base_precision != "fp32" else 0,
            base_precision=form.base_precision,
            device_bytes=memory,
        )

    found = estimate(launch)
    token_bytes = found.activations_bytes / 1000 if found.activations_bytes else None
    fixed = found.total_bytes - (found.activations_bytes or 0)
    left = _USABLE * memory - fixed
    most = config.training.micro_batch_tokens or GPU_MICRO_BATCH_TOKENS
    return Choice(
        trains=form.name,
        strategy=launch.strategy,
        offload=launch.offload,
        fixed_bytes=fixed,
        token_bytes=token_bytes,
        host_bytes=found.host_bytes * launch.per_node,
        tokens=max(0, min(most, int(left / token_bytes))) if token_bytes else most * (left > 0),
        # Prompt and one completion take max_length at most, the other completion as much again.
        needed=min(2 * config.data.max_length, most),
        sent_bytes=sent_bytes(
            launch.strategy,
            nodes=launch.nodes,
            parameters=parameters,
            trained=found.trained,
            words=found.words,
            width=2 if form.training.precision == "bf16" and launch.strategy == "fsdp2" else 4,
        )
        if launch.nodes > 1
        else None,
    )


_ORDER: tuple[tuple[LaunchStrategy, Offload], ...] = (
    *(("single", "none"), ("ddp", "none"), ("deepspeed_zero1", "none")),
    *(("deepspeed_zero2", "none"), ("fsdp2", "none"), ("deepspeed_zero3", "none")),
    *(("deepspeed_zero1", "optimizer"), ("deepspeed_zero2", "optimizer")),
    *(("deepspeed_zero3", "optimizer"), ("fsdp2", "all"), ("deepspeed_zero3", "all")),
)
"""Strategies by what they cost in time: the first one that fits is the best."""


def recommended(found: list[Choice], config: RunConfig) -> Choice | None:
    """Return the first choice that fits, of what the recipe trains; None: none does."""
    precision = config.model.base_precision
    mine = f"adapters over {precision}" if config.training.lora_r else "all weights"
    fitting = [choice for choice in found if choice.fits and choice.trains == mine]
    key = {each: place for place, each in enumerate(_ORDER)}
    return min(fitting, key=lambda c: key.get((c.strategy, c.offload), len(_ORDER)), default=None)


def advice(
    hardware: Hardware, found: list[Choice], config: RunConfig, *, flops: float | None
) -> str:
    """Return a recommendation in words, with hours where ``flops`` are known."""
    device, best = hardware.device, recommended(found, config)
    if best is None:
        other = next((choice for choice in found if choice.fits), None)
        instead = (
            f"{other.trains} would fit ({other.strategy})"
            if other
            else "adapters do not fit either"
        )
        return f"{hardware}: what the recipe trains does not fit; {instead}, or take more devices"
    setting = f"launch.processes={hardware.all} launch.strategy={best.strategy}"
    setting += f" launch.nodes={hardware.nodes}" if hardware.nodes > 1 else ""
    setting += f" launch.offload={best.offload}" if best.offload != "none" else ""
    if best.host_bytes:
        whose = "its" if hardware.nodes == 1 else "each node's"
        setting += f", with {best.host_bytes / _GIB:.0f} GiB of {whose} memory"
    said = f"{hardware}: {setting}"
    if flops is None:
        return f"{said}; hours depend on the partition, which `sdpo run` makes"
    seconds = flops / (device.useful_flops * hardware.all)
    source = "measured on one" if device.measured else "as its maker published, not measured"
    return (
        f"{said}; roughly {duration(seconds)} ({device.flops / 1e12:.0f} TFLOP/s of bf16 products "
        f"{source}, {device.useful_flops / device.flops:.0%} of it of use, "
        f"time taken to shrink with the number of devices{_network(best)})"
    )


def _network(best: Choice) -> str:
    """Return what is to be said of the network between nodes, where there is one."""
    if best.sent_bytes is None:
        return ""
    return (
        f"; the network is not counted: each node sends {best.sent_bytes / _GIB:.2f} GiB in an "
        "optimizer step of one micro-batch"
    )
