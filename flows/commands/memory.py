"""Estimate what training takes of a device's memory, from the model's files and the settings."""

import math
from dataclasses import dataclass

from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.config.automatic import head_rows, lane_count, micro_batch_tokens, training_lanes
from sdpo.config.training import MOMENT_BYTES
from sdpo.identity.model_folder import text_config
from sdpo.system.json_values import JsonObject

_GIB = 2**30

_HIDDEN = ("hidden_size", "n_embd", "d_model", "hidden_dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "inner_hidden_size")
"""Architectures give the widths and the number of their layers these names."""

_KEPT_BYTES = {"bf16": (36, 8), "fp32": (42, 16), "fused": (34, 8)}
"""A Llama's layer keeps so many bytes of a token for the backward pass, per hidden and per
feed-forward width. They are counted from what autograd saves, in bf16, in fp32, and in fp32 with
this project's own backward passes on a CPU."""
_RECOMPUTED_BYTES = 4
"""A layer whose activations are recomputed keeps so many bytes per hidden width: the fp32 residual.
"""
_SELECTIVE_BYTES = {"bf16": (12, 4), "fp32": (24, 8), "fused": (24, 8)}
"""A Llama's layer keeps so many beside it, per hidden and per feed-forward width, where the results
of matrix products and of attention are not recomputed."""

_HELD_BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "nf4": 0.5625}
"""A weight of a base under adapters takes so many bytes where its layer is held in this precision:
NF4 has an fp32 scale for 64 weights."""


_SHARED: dict[str, tuple[str, ...]] = {
    "deepspeed_zero1": ("states",),
    "deepspeed_zero2": ("gradients", "states"),
    "deepspeed_zero3": ("weights", "gradients", "states"),
    "fsdp2": ("weights", "gradients", "states"),
}
"""Of these each process holds its share alone."""
_AWAY: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("states",),
    "all": ("weights", "gradients", "states"),
}
"""These wait in the machine's memory, by ``launch.offload``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """An estimate says what training takes of one device's memory.

    Activations are a rule of thumb, the rest is counted. ``parameters`` and ``trained`` are numbers
    of weights, all and those that train. ``activations_bytes`` is None where the configuration does
    not name its layers in a way that is known here. ``gathered_bytes`` are of what is whole on a
    device for a block's time, where each has a share; ``host_bytes`` of the machine's memory, for
    this device. ``words`` are the weights of the embedding and the head.
    """

    parameters: int
    precision: str
    trained: int
    weights_bytes: int
    copies_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int | None
    head_bytes: int
    gathered_bytes: int = 0
    host_bytes: int = 0
    words: int = 0

    @property
    def total_bytes(self) -> int:
        """Return the sum, in which activations that are not known count as none."""
        return (
            self.weights_bytes
            + self.copies_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + (self.activations_bytes or 0)
            + self.head_bytes
            + self.gathered_bytes
        )

    def rows(self) -> list[dict[str, str]]:
        """Return a row for each part that takes memory, and one for the sum, in GiB."""
        parts: dict[str, int | None] = {
            f"weights ({self.parameters:,} parameters, {self.precision})": self.weights_bytes,
            "their copies in bf16": self.copies_bytes,
            f"gradients ({self.trained:,} trained)": self.gradients_bytes,
            "optimizer state": self.optimizer_bytes,
            "activations": self.activations_bytes,
            "head, in chunks": self.head_bytes,
            "blocks that are whole for a moment": self.gathered_bytes,
            "in all" if self.activations_bytes is not None else "in all, but for activations": (
                self.total_bytes
            ),
        }
        return [
            {"what": what, "GiB": "not known" if size is None else f"{size / _GIB:.2f}"}
            for what, size in parts.items()
            if size != 0
        ]


def estimate_memory(
    config: JsonObject,
    *,
    parameters: int,
    training: TrainingConfig,
    launch: LaunchConfig,
    held: int = 0,
    base_precision: str = "fp32",
    device_bytes: int = 0,
) -> MemoryEstimate:
    """Estimate what training takes on one device.

    ``config`` is the model's ``config.json``, ``launch`` is resolved. Weights, gradients and the
    optimizer's state are fp32. In bf16 autocast keeps a copy of what trains. DDP's gradients are
    views of its buckets, which take nothing more. On a CPU a small model computes several
    micro-batches at a time. ``held`` is the number of weights in linear layers, which a base under
    adapters has in ``base_precision``; ``device_bytes`` are a device's own, 0 unknown.
    """
    text = text_config(config)
    hidden, layers = _number(text, _HIDDEN), _number(text, _LAYERS)
    inner = _number(text, _INNER) or 4 * hidden
    trained = parameters
    if training.lora_r:
        # all-linear: q, k, v, o and three feed-forward matrices of each layer
        trained = layers * training.lora_r * (8 * hidden + 3 * (hidden + inner))
    weights = 4 * (parameters - held) + _HELD_BYTES[base_precision] * held
    processes, device = launch.processes, str(launch.device)
    lanes = lane_count(parameters, threads=launch.threads, device=device, processes=processes)
    lanes = training_lanes(training, lanes)
    tokens = lanes * micro_batch_tokens(training.micro_batch_tokens, device=device)
    vocabulary = _number(text, ("vocab_size",)) or _number(config, ("vocab_size",))
    activations = None
    if hidden and layers:
        activations = math.ceil(tokens * _kept_bytes(training, device, hidden, inner, layers))
    here, host_bytes = _divided(
        {
            "weights": weights,
            "gradients": 4 * trained * _sums(lanes),
            "states": MOMENT_BYTES[training.optimizer] * trained,
        },
        launch,
    )
    low = training.precision == "bf16"
    words = vocabulary * hidden * (1 if text.get("tie_word_embeddings") else 2)
    rows = head_rows(vocabulary or 1, device=device, memory=device_bytes)
    return MemoryEstimate(
        parameters=parameters,
        precision=base_precision if held else "fp32",
        trained=trained,
        weights_bytes=here["weights"],
        # FSDP2 makes the copies of a block when it makes the block whole.
        copies_bytes=2 * trained if low and launch.strategy != "fsdp2" else 0,
        gradients_bytes=here["gradients"],
        optimizer_bytes=here["states"],
        activations_bytes=activations,
        head_bytes=lanes * 3 * 4 * vocabulary * rows,
        gathered_bytes=_gathered(
            parameters,
            words=min(parameters, words),
            layers=layers or 1,
            width=2 if low and launch.strategy == "fsdp2" else 4,
            all_train=not training.lora_r,
        )
        if launch.shares_weights
        else 0,
        host_bytes=host_bytes,
        words=min(parameters, words),
    )


def _divided(sizes: dict[str, float], launch: LaunchConfig) -> tuple[dict[str, int], int]:
    """Return what one device has of these bytes, by part, and what the machine has for it."""
    shared, away = _SHARED.get(launch.strategy, ()), _AWAY[launch.offload]
    own = {
        part: math.ceil(size / (launch.processes if part in shared else 1))
        for part, size in sizes.items()
    }
    return own | dict.fromkeys(away, 0), sum(own[part] for part in away)


def _gathered(parameters: int, *, words: int, layers: int, width: int, all_train: bool) -> int:
    """Return the bytes of what is whole on a device at a time.

    Those are the embedding and the head, with ``words`` weights, a block that computes and the one
    that comes next, with ``width`` bytes a weight, and the fp32 gradients of a block and of the
    former; those of adapters alone are small.
    """
    block = (parameters - words) // layers
    gradients = (block + words) * 4 if all_train else 0
    return (2 * block + words) * width + gradients


def _number(config: JsonObject, names: tuple[str, ...]) -> int:
    """Return the first integer that the configuration has under one of ``names``, else 0."""
    found = map(config.get, names)
    return next((int(number) for number in found if isinstance(number, int)), 0)


def _kept_bytes(
    training: TrainingConfig, device: str, hidden: int, inner: int, layers: int
) -> float:
    """Return the bytes that all layers keep of a token until the backward pass."""
    kind = "bf16" if training.precision == "bf16" else "fused" if device == "cpu" else "fp32"
    per_hidden, per_inner = _KEPT_BYTES[kind]
    layer = per_hidden * hidden + per_inner * inner
    if not training.recomputed:
        return layer * layers
    kept = float(_RECOMPUTED_BYTES * hidden)
    if training.recomputed == "selective":
        per_hidden, per_inner = _SELECTIVE_BYTES[kind]
        kept += per_hidden * hidden + per_inner * inner
    return kept * layers + layer


def _sums(lanes: int) -> int:
    """Return how many copies of the gradients there are.

    Each of several lanes has a sum of its own, and beside it the gradients of a micro-batch.
    """
    return 1 if lanes == 1 else 2 * lanes
