"""What a model draws at random in training: switched off where it can be, refused where not.

Reference and policy must agree before the first update, or the losses are those of another model.
Dropout that a person asks for, that of adapters (``lora_dropout``), comes later and stays.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sdpo.errors import ModelError
from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.model.rounding import allowed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sdpo.model.sequence_scorer import SequenceScorer

_TRIED = 64
_ROUTERS = "output_router_logits"
"""A setting with which every forward makes a loss from a mask of its own, generation too."""
_AGAIN = 8
"""So often a model that seems to draw is asked, to learn whether the device repeats itself."""


def switch_off(policy: "PreTrainedModel") -> None:
    """Set the rates of the model's own dropout to 0, and of noise that training alone reads.

    Rates stand in modules, and in configurations that are read at every forward. Routers' logits
    are put out where they are asked for alone.
    """
    jitter = [rate for rate in _rates(policy, "jitter") if getattr(*rate) > 0]
    if jitter and _in_training_alone(policy, jitter):
        _set(jitter, 0.0)
    for module, name in _rates(policy, "drop"):  # hidden_dropout, layerdrop, ...
        setattr(module, name, 0.0)
    kept = [(config, name, getattr(config, name)) for config, name in _configured(policy)]
    policy._sdpo_own_settings = kept
    for config, name, value in kept:
        setattr(config, name, type(value)())


@contextmanager
def own_settings(policy: "PreTrainedModel") -> Iterator[None]:
    """Within it the model's configuration has the settings it came with: it is published."""
    kept = getattr(policy, "_sdpo_own_settings", [])
    for config, name, value in kept:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, value in kept:
            setattr(config, name, type(value)())


def draws_at_random(model: nn.Module) -> bool:
    """Whether a training forward draws random numbers, whose order lanes would not keep."""
    return any(getattr(module, name) > 0 for module, name in _rates(model, "drop", "jitter"))


class Generators:
    """States of torch's generators, to draw the same again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


@torch.no_grad()
def check_training_mode(scorer: "SequenceScorer", *, device: torch.device) -> None:
    """Refuse a model that gives other log-probs in train mode; generators stay where they are.

    Two forwards of one mode are the same operations, whose results are the same to the last bits,
    in bf16 too, but where the device adds in no fixed order: that is measured. What train mode
    differs by from the other may be rounding, as some kernels are others there.

    ``scorer``: a :class:`~sdpo.model.sequence_scorer.SequenceScorer`.

    Raises:
        ModelError: it does; the message has the numbers.
    """
    vocabulary = scorer.model.config.get_text_config().vocab_size
    ids = np.arange(_TRIED, dtype=np.int32) * 7 % vocabulary
    layout = LAYOUTS["padded"]
    group = PromptGroup(ids[:1], (ids[1:],))
    batch = layout.collate([group], pad_token_id=0, device=device.type).to(device)
    generators = Generators(device)
    scorer.train()
    trained = [float(scorer(batch)[0]) for _ in range(2)]
    scorer.eval()
    generators.restore()
    asked = float(scorer(batch)[0])
    size, low = abs(asked) / math.sqrt(_TRIED), torch.is_autocast_enabled(device.type)
    drawn, apart = abs(trained[1] - trained[0]), max(abs(value - asked) for value in trained)
    noise = 0.0
    if not drawn <= allowed(size, low=False):
        again = [asked, *(float(scorer(batch)[0]) for _ in range(_AGAIN))]
        noise = 2 * (max(again) - min(again))
    exact, rounded = allowed(size, low=False) + noise, allowed(size, low=low) + noise
    if not (drawn <= exact and apart <= rounded):
        raise ModelError(
            f"{type(scorer.model).__name__} is another model in training: it gives the same "
            f"{_TRIED - 1} tokens log-probs of {trained[0]:.6g} and {trained[1]:.6g} nats there, "
            f"and {asked:.6g} when it is asked. Its dropout and its routers' jitter are switched "
            "off; what is left is random by its code (experts that are drawn, say), and policy and "
            "reference would differ before the first update. Start from another model"
        )


def _rates(model: nn.Module, *words: str) -> Iterator[tuple[nn.Module, str]]:
    """Modules with the names of their rates: of dropout, and of others by ``words`` in them."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and "drop" in words:
            yield module, "p"
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(word in name for word in words):
                yield module, name


def _configured(model: nn.Module) -> "list[tuple[PretrainedConfig, str]]":
    """Rates of dropout above 0 in the configurations that the model's modules have, and whether
    routers' logits are put out."""
    configs = {
        id(config): config
        for module in model.modules()
        if (config := vars(module).get("config")) is not None
    }
    return [
        (config, name)
        for config in configs.values()
        for name, value in list(vars(config).items())
        if (isinstance(value, float) and value > 0 and "drop" in name)
        or (name == _ROUTERS and value is True)
    ]


def _set(rates: list[tuple[nn.Module, str]], value: float) -> None:
    for module, name in rates:
        setattr(module, name, value)


@torch.no_grad()
def _in_training_alone(policy: "PreTrainedModel", rates: list[tuple[nn.Module, str]]) -> bool:
    """Whether an answer depends on none of ``rates``: some routers read theirs as a threshold."""
    policy.eval()
    device = policy.get_input_embeddings().weight.device
    ids = torch.arange(_TRIED, device=device)[None] * 7 % policy.config.get_text_config().vocab_size
    own = [getattr(*rate) for rate in rates]
    answers = []
    for value in (0.0, 1e3):
        _set(rates, value)
        answers.append(policy(input_ids=ids, use_cache=False).logits)
    for (module, name), value in zip(rates, own, strict=True):
        setattr(module, name, value)
    return torch.equal(*answers)
