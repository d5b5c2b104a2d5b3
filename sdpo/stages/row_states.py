"""Move a training that FSDP2 holds in shares to files and back, on as many ranks as there are.

Every rank writes the rows that it has; any number of ranks reads its own rows from all files. The
distributed checkpoints of torch would do the same with an index that is a pickle, and pickles are
never loaded here.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor

from sdpo.errors import IntegrityError
from sdpo.model.shares import own_rows, rows_of
from sdpo.training.trainer import Trainer

_WEIGHT = "weight"
_COUNTS = {"step"}
"""The optimizer has these of each weight, the same on every rank."""


def row_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rows-{rank}.safetensors"


def row_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return this rank's rows of weights and optimizer states, on the CPU, by name."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in _trained(trainer):
        found[f"{_WEIGHT}:{name}"] = _own(parameter)
        for key, value in trainer.optimizer.optimizer.state.get(parameter, {}).items():
            found[f"{key}:{name}"] = _own(value)
    return found


def load_rows(trainer: Trainer, folder: Path, *, ranks: int) -> None:
    """Put weights and optimizer states back to what :func:`row_tensors` was on ``ranks`` ranks.

    Raises:
        IntegrityError: the files have other tensors than this training, or other shapes.
    """
    optimizer = trainer.optimizer.optimizer
    with ExitStack() as stack, torch.no_grad():
        files = [
            stack.enter_context(safe_open(folder / row_file(rank), framework="pt"))
            for rank in range(ranks)
        ]
        left = set(files[0].keys())
        states: dict[int, dict[str, torch.Tensor]] = {}
        for index, (name, parameter) in enumerate(_trained(trainer)):
            own = {key for key in left if key.partition(":")[2] == name}
            left -= own
            if f"{_WEIGHT}:{name}" not in own:
                raise IntegrityError(f"the resume state has no weight {name}")
            for key in sorted(key.partition(":")[0] for key in own):
                if key in _COUNTS:
                    states.setdefault(index, {})[key] = files[0].get_tensor(f"{key}:{name}")
                    continue
                rows = _rows(files, f"{key}:{name}", parameter)
                if key == _WEIGHT:
                    parameter.to_local().copy_(rows)
                else:
                    states.setdefault(index, {})[key] = _like(parameter, rows)
        if left:
            odd = ", ".join(sorted(left)[:3])
            raise IntegrityError(f"the resume state has tensors of nothing here: {odd}")
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})


def _trained(trainer: Trainer) -> list[tuple[str, DTensor]]:
    """Return the weights that train, in the optimizer's order, with their names."""
    trainer.scorer.reshard()  # type: ignore[operator]
    names = {id(parameter): name for name, parameter in trainer.scorer.named_parameters()}
    groups = trainer.optimizer.optimizer.param_groups
    return [(names[id(p)], p) for group in groups for p in group["params"]]


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of this rank's rows on the CPU."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach().to("cpu", copy=True).contiguous()


def _like(parameter: DTensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows`` as this rank's of a tensor that is shared as ``parameter`` is."""
    own = torch.empty_like(parameter.to_local()).copy_(rows)
    return DTensor.from_local(
        own,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _rows(files: Sequence[safe_open], key: str, parameter: DTensor) -> torch.Tensor:
    """Return the rows of this rank, collected from the ranks that had them.

    Raises:
        IntegrityError: these ranks together had another number of rows, or rows of another shape.
    """
    wanted, total = own_rows(parameter), parameter.shape[0]
    found = [torch.empty((0, *parameter.shape[1:]))]
    for rank, file in enumerate(files):
        had = rows_of(total, rank=rank, ranks=len(files))
        stored = file.get_slice(key)  # type: ignore[no-untyped-call]
        if list(stored.get_shape()) != [had.stop - had.start, *parameter.shape[1:]]:
            raise IntegrityError(f"the resume state's {key} has another shape than the model")
        first, last = max(wanted.start, had.start), min(wanted.stop, had.stop)
        if first < last:
            found.append(stored[first - had.start : last - had.start])
    return torch.cat(found)
