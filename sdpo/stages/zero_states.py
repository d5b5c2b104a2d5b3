"""Move what DeepSpeed's ZeRO divides among ranks to files and back, on any number of ranks.

A rank has flat fp32 weights, and the optimizer's states of the same shape, a tensor for each group.
ZeRO-1 and 2 lay a group's weights end to end and divide the whole; ZeRO-3 divides each weight, and
lays a rank's parts end to end. A part's last elements are padding where a division leaves a rest.
DeepSpeed's own checkpoints are pickles that it loads with ``weights_only=False``.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from sdpo.errors import IntegrityError
from sdpo.training.trainer import Trainer

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer

_WEIGHTS = "weights"
_COUNTS = {"step"}
"""The optimizer has these of each group, the same on every rank."""


def zero_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"zero-{rank}.safetensors"


def zero_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return this rank's flat weights and states, on the CPU: `name.group`."""
    zero = trainer.optimizer.optimizer
    tensors: dict[str, torch.Tensor] = {}
    for index, partition in enumerate(_partitions(zero)):
        own = {_WEIGHTS: partition, **zero.optimizer.state.get(partition, {})}
        for name, value in own.items():
            tensors[f"{name}.{index}"] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


def load_zero(trainer: Trainer, folder: Path, *, ranks: int) -> None:
    """Put weights and states back to what :func:`zero_tensors` was on ``ranks`` ranks.

    Raises:
        IntegrityError: these ranks together had weights of another size than this training.
    """
    zero, accelerator = trainer.optimizer.optimizer, trainer.accelerator
    rank, now = accelerator.process_index, accelerator.num_processes
    partitions, divided = _partitions(zero), _divided(zero)
    with ExitStack() as stack, torch.no_grad():
        files = [
            stack.enter_context(safe_open(folder / zero_file(number), framework="pt"))
            for number in range(ranks)
        ]
        keys = set(files[0].keys())
        for name in sorted({key.partition(".")[0] for key in keys}):
            if name in _COUNTS:
                for partition in partitions:
                    _put(zero, partition, name, files[0].get_tensor(f"{name}.0"))
                continue
            stored = [Flat.of(file, name) for file in files]
            parts = own_parts(stored, divided, rank=rank, ranks=now)
            for partition, own in zip(partitions, parts, strict=True):
                if own.shape != partition.shape:
                    raise IntegrityError("the resume state's parts have other sizes than ZeRO's")
                _put(zero, partition, name, own)
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        _spread_stage3(zero)
    else:
        zero.update_lp_params()


def _partitions(zero: "ZeROOptimizer") -> list[torch.Tensor]:
    """Return this rank's flat fp32 weights, one tensor per group; keys of the optimizer's state."""
    stage3 = getattr(zero, "fp32_partitioned_groups_flat", None)
    return list(zero.single_partition_of_fp32_groups if stage3 is None else stage3)


@dataclass(frozen=True, slots=True)
class Divided:
    """So a group is divided: ``sizes`` are the elements of what is divided by itself, one after the
    other, and a part is a multiple of ``unit``."""

    sizes: tuple[int, ...]
    unit: int

    def part(self, size: int, ranks: int) -> int:
        """Return the elements of one of ``ranks`` parts of ``size`` elements, padding included."""
        return -(-size // (self.unit * ranks)) * self.unit


def _divided(zero: "ZeROOptimizer") -> list[Divided]:
    """Return how each group is divided, in the order of :func:`_partitions`."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return [Divided(tuple(p.ds_numel for p in group), 1) for group in zero.fp16_groups]
    groups = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_padding, strict=True)
    unit = zero.nccl_start_alignment_factor
    return [Divided((sum(p.numel() for p in g) + sum(pads),), unit) for g, pads in groups]


@dataclass(frozen=True, slots=True)
class Flat:
    """A rank's file has one tensor in pieces, a piece for each of its groups."""

    pieces: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, file: safe_open, name: str) -> "Flat":
        """Return the pieces of ``name``: views of the mapped file."""
        keys = set(file.keys())  # type: ignore[no-untyped-call]
        count = sum(key.partition(".")[0] == name for key in keys)
        pieces = [file.get_tensor(f"{name}.{i}") for i in range(count)]  # type: ignore[no-untyped-call]
        return cls(tuple(pieces))

    @property
    def size(self) -> int:
        """Return the elements of all pieces."""
        return sum(len(piece) for piece in self.pieces)

    def between(self, first: int, last: int) -> Iterator[torch.Tensor]:
        """Yield elements ``first`` to ``last`` of the whole, in their order."""
        start = 0
        for piece in self.pieces:
            yield piece[max(first - start, 0) : max(last - start, 0)]
            start += len(piece)


def own_parts(
    stored: Sequence[Flat], divided: Sequence[Divided], *, rank: int, ranks: int
) -> Iterator[torch.Tensor]:
    """Yield this rank's flat tensor of each group, collected from the parts that are ``stored``.

    Raises:
        IntegrityError: what is stored has another size.
    """
    before = len(stored)
    sizes = [sum(each.part(size, before) for size in each.sizes) for each in divided]
    if any(flat.size != sum(sizes) for flat in stored):
        raise IntegrityError(
            f"the resume state's parts are not those of {before} ranks that share these weights"
        )
    start = 0
    for each in divided:
        found: list[torch.Tensor] = []
        for size in each.sizes:
            had, wanted = each.part(size, before), each.part(size, ranks)
            low, high = rank * wanted, min((rank + 1) * wanted, size)
            for number, flat in enumerate(stored):
                first, last = max(low, number * had), min(high, (number + 1) * had)
                if first < last:
                    found += flat.between(*(start + at - number * had for at in (first, last)))
            found.append(torch.zeros(wanted - max(high - low, 0)))
            start += had
        yield torch.cat(found)


def _put(zero: "ZeROOptimizer", partition: torch.Tensor, name: str, value: torch.Tensor) -> None:
    """Give a flat tensor its weights or, by another ``name``, a state in the optimizer."""
    if name == _WEIGHTS:
        partition.data.copy_(value)
        return
    state = zero.optimizer.state[partition]
    place = state[name].device if name in state else partition.device
    state[name] = value.to(place, copy=True)


def _spread_stage3(zero: "ZeROOptimizer") -> None:
    """Give the weights that ZeRO-3 computes with the values of its flat fp32 partitions."""
    from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, LOSS_SCALER

    own = {
        LOSS_SCALER: zero.loss_scaler,
        "dynamic_loss_scale": zero.dynamic_loss_scale,
        "overflow": zero.overflow,
        FP32_FLAT_GROUPS: zero.fp32_partitioned_groups_flat,
    }
    rank = torch.distributed.get_rank(group=zero.dp_process_group)
    zero.load_state_dict({rank: own}, load_optimizer_states=False)
    zero.checkpoint_event_epilogue()  # gathers the small weights that every rank keeps whole
