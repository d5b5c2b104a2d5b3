"""Move the tensors and generators of a training from memory to files and back, bit for bit.

Tensors go to safetensors, generators to JSON. Every rank writes its own files: one process and DDP
hold everything on the main rank, FSDP2 and DeepSpeed's ZeRO hold a share on each. Any number of
ranks can take them up.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sdpo.errors import IntegrityError
from sdpo.stages.row_states import load_rows, row_file, row_tensors
from sdpo.stages.zero_states import load_zero, zero_file, zero_tensors
from sdpo.training.trainer import Trainer

Tensors = dict[str, torch.Tensor]
Held = Literal["whole", "rows", "zero"]
"""Weights and optimizer states are whole on the main rank, or on each rank rows of them (FSDP2), or
flat parts (ZeRO)."""


def save_training(trainer: Trainer, folder: Path, *, held: Held) -> list[str]:
    """Write this rank's share of the training into ``folder``, and return the files' names."""
    rank = trainer.accelerator.process_index
    files: dict[str, Tensors] = {}
    if held == "zero":
        files[zero_file(rank)] = zero_tensors(trainer)
    if held == "rows":
        files[row_file(rank)] = row_tensors(trainer)
    if trainer.accelerator.is_main_process:
        module = trainer.accelerator.unwrap_model(trainer.scorer)
        whole = held == "whole"
        files["model.safetensors"] = _buffers(module) | (_trained(module) if whole else {})
        if whole:
            files["optimizer.safetensors"] = _optimizer_tensors(trainer, module)
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    generators = f"generators-{rank}.json"
    (folder / generators).write_text(
        json.dumps(asdict(generator_states(trainer.accelerator.device))), encoding="utf-8"
    )
    return [*files, generators]


def load_training(trainer: Trainer, folder: Path, *, held: Held) -> int:
    """Put the training back to what :func:`save_training` wrote; generators last.

    Returns the number of ranks that wrote it. A rank that was not among them keeps its generators.

    Raises:
        IntegrityError: the tensors are not those of this training.
    """
    rank, ranks = trainer.accelerator.process_index, len(list(folder.glob("generators-*.json")))
    module = trainer.accelerator.unwrap_model(trainer.scorer)
    stored = load_file(folder / "model.safetensors")
    _copy_into(_buffers(module, copy=False), stored, prefix=_BUFFER)
    if held == "rows":
        load_rows(trainer, folder, ranks=ranks)
    elif held == "zero":
        load_zero(trainer, folder, ranks=ranks)
    else:
        _copy_into(_trained(module, copy=False), stored, prefix=_PARAMETER)
        _load_optimizer(trainer, module, load_file(folder / "optimizer.safetensors"))
    if rank < ranks:
        text = (folder / f"generators-{rank}.json").read_text(encoding="utf-8")
        restore_generators(GeneratorStates(**json.loads(text)), trainer.accelerator.device)
    return ranks


_PARAMETER, _BUFFER = "parameter.", "buffer."


def _trained(module: torch.nn.Module, *, copy: bool = True) -> Tensors:
    """Return the parameters that train, by name; shared ones once."""
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return {_PARAMETER + n: _plain(p) if copy else p for n, p in named.items()}


def _buffers(module: torch.nn.Module, *, copy: bool = True) -> Tensors:
    """Return all buffers, also those that a model never saves: some positions change as it runs."""
    return {_BUFFER + n: _plain(b) if copy else b for n, b in module.named_buffers()}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU that shares no memory with another tensor."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _copy_into(tensors: Tensors, stored: Tensors, *, prefix: str) -> None:
    found = {name for name in stored if name.startswith(prefix)}
    if odd_names := found ^ set(tensors):
        odd = ", ".join(sorted(odd_names)[:3])
        raise IntegrityError(f"the resume state has other tensors than the model: {odd}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.shape != stored[name].shape:
                raise IntegrityError(f"the resume state's {name} has another shape than the model")
            tensor.copy_(stored[name])


_STATES = (
    *("step", "exp_avg", "exp_avg_sq", "square_avg"),
    *("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"),
)
"""An optimizer keeps some of these of each parameter; the second line's are those in 8 bits."""


def _optimized(trainer: Trainer, module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters in the optimizer's order, with their names."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = trainer.optimizer.optimizer.param_groups
    return [(names[id(p)], p) for group in groups for p in group["params"]]


def _optimizer_tensors(trainer: Trainer, module: torch.nn.Module) -> Tensors:
    states = trainer.optimizer.optimizer.state
    return {
        f"{key}.{name}": _plain(torch.as_tensor(value))
        for name, parameter in _optimized(trainer, module)
        for key, value in states.get(parameter, {}).items()
    }


def _load_optimizer(trainer: Trainer, module: torch.nn.Module, stored: Tensors) -> None:
    optimizer = trainer.optimizer.optimizer
    states: dict[int, dict[str, torch.Tensor | int]] = {}
    for index, (name, _) in enumerate(_optimized(trainer, module)):
        suffix = f".{name}"
        of_parameter: dict[str, torch.Tensor | int] = {
            key: value.clone()
            for key in _STATES
            if (value := stored.pop(key + suffix, None)) is not None
        }
        if "state1" in of_parameter:  # bitsandbytes counts in plain numbers
            of_parameter["step"] = int(of_parameter["step"])
        if of_parameter:
            states[index] = of_parameter
    if stored:
        odd = ", ".join(sorted(stored)[:3])
        raise IntegrityError(f"the resume state has optimizer tensors of nothing here: {odd}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorStates:
    """A process's generators of random numbers have these states, of JSON types; tensors as hex."""

    torch: str
    cuda: str | None
    numpy: tuple[str, list[int], int, int, float]
    python: tuple[int, list[int], float | None]


def generator_states(device: torch.device) -> GeneratorStates:
    """Return the states of this process, whose device is ``device``."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, next_gauss = random.getstate()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return GeneratorStates(
        torch=_hex(torch.get_rng_state()),
        cuda=None if cuda is None else _hex(cuda),
        numpy=(name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
        python=(version, list(internal), next_gauss),
    )


def restore_generators(states: GeneratorStates, device: torch.device) -> None:
    """Put the generators back to what :func:`generator_states` returned."""
    torch.set_rng_state(_from_hex(states.torch))
    if states.cuda is not None:
        torch.cuda.set_rng_state(_from_hex(states.cuda), device)
    name, keys, position, has_gauss, gauss = states.numpy
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, next_gauss = states.python
    random.setstate((version, tuple(internal), next_gauss))


def _hex(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
