"""Collect what the trial of a layout depends on besides the lengths that were tried."""

import hashlib
import inspect
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import sdpo.model
from sdpo.model.sequence_scorer import inner_model
from sdpo.system.json_values import JsonObject
from sdpo.system.machine import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_NO_MATTER = ("_name_or_path", "_commit_hash", "transformers_version")
"""These entries of a configuration say where it came from, not what it is."""


def conditions(
    policy: "PreTrainedModel",
    *,
    layout: str,
    precision: str,
    device: torch.device,
    gradients: bool,
) -> JsonObject | None:
    """Return all that a trial's outcome depends on, weights and lengths aside.

    That is the architecture with its configuration and kernel, this project's code that scores,
    versions, the device. None where it cannot be told: the code is the model folder's own.
    """
    policy = inner_model(policy)
    config = json.loads(policy.config.to_json_string(use_diff=False))
    if "auto_map" in config:
        return None
    return {
        "architecture": type(policy).__name__,
        "code": _digest([Path(inspect.getfile(type(policy)))]),
        # As text: some have infinities, which a digest's JSON has not.
        "config": json.dumps({k: v for k, v in config.items() if k not in _OF_NO_MATTER}),
        "attention": str(policy.config._attn_implementation),
        "scoring": _own_code(),
        "versions": versions(),
        "device": _name(device),
        "layout": layout,
        "precision": precision,
        "gradients": gradients,
    }


@cache
def _own_code() -> str:
    """Return the digest of the modules that make a model score, which may have been edited."""
    return _digest(sorted(Path(sdpo.model.__path__[0]).rglob("*.py")))


def _digest(files: list[Path]) -> str:
    content = hashlib.sha256()
    for file in files:
        content.update(hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
