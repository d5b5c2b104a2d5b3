"""Switch off what a model draws at random in training, and refuse what cannot be switched off.

Reference and policy must agree before the first update, or the losses are those of another model.
Dropout that the recipe asks for, that of adapters (``lora_dropout``), is added later and stays.
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
"""With this setting every forward, also in generation, makes a loss from a mask of its own."""
_AGAIN = 8
"""A model that seems to draw is asked so often, to learn whether the device repeats itself."""


def switch_off(policy: "PreTrainedModel") -> None:
    """Set the rates of the model's own dropout to 0, and of noise that only training reads.

    Rates are in modules, and in configurations that are read at every forward. A setting to put out
    routers' logits in every forward is switched off too: they are asked for where they are needed.
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
    """Restore, while within, the settings the model came with: it is published with them."""
    kept = getattr(policy, "_sdpo_own_settings", [])
    for config, name, value in kept:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, value in kept:
            setattr(config, name, type(value)())


def draws_at_random(model: nn.Module) -> bool:
    """Return whether a training forward draws random numbers, whose order lanes would not keep."""
    return any(getattr(module, name) > 0 for module, name in _rates(model, "drop", "jitter"))


class Generators:
    """This object keeps the states of torch's generators, to draw the same numbers again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Put the generators back into the states that were kept."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


@torch.no_grad()
def check_training_mode(scorer: "SequenceScorer", *, device: torch.device) -> None:
    """Refuse a model that gives other log-probs in train mode; random generators keep their state.

    Two forwards in one mode are the same operations, with the same results to the last bits, in
    bf16 too, unless the device adds in no fixed order: that is measured. What train mode and eval
    mode differ by may be rounding, as they use different kernels in places.

    ``scorer``: a :class:`~sdpo.model.sequence_scorer.SequenceScorer`.

    Raises:
        ModelError: the log-probs differ by more than rounding; the message has the numbers.
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
    """Yield modules with the names of their rates: dropout's, and those with one of ``words``."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and "drop" in words:
            yield module, "p"
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(word in name for word in words):
                yield module, name


def _configured(model: nn.Module) -> "list[tuple[PretrainedConfig, str]]":
    """Return what :func:`switch_off` sets in the configurations of the model's modules, by name.

    These are rates of dropout above 0, and whether routers' logits are put out.
    """
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
    """Return whether a forward ignores ``rates``: some routers read theirs as a threshold."""
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
