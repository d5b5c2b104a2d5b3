"""Check whether a model gives the same answers in a layout as in plain padded rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sdpo.errors import LayoutError
from sdpo.model.layouts import LAYOUTS, Batch, PromptGroup
from sdpo.system.out_of_memory import first_line, is_out_of_memory
from sdpo.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOKENS = 2048
"""Two long pairs are tried up to so many tokens, prompts once; one pair may have more."""
_PARTS = (96, 96, 96)
SHORT_PARTS = (32, 24, 17)
"""So many tokens of prompt, chosen and rejected are tried where length changes only the work.

The second are for the architectures of :mod:`sdpo.model.compared`, whose table was made with
sequences of 7 to 58 tokens.
"""
_Measured = tuple[torch.Tensor, list[torch.Tensor]]
_LEAK, _LOW_LEAK = 1e-3, 0.05
"""A side's log-prob may move by so many nats where others' tokens change and all lengths stay.

The operations are the same, so a layout that keeps sides apart moves it by nothing. The second is
for bf16.
"""


def tried_pairs(tokens: TokenFile, rows: np.ndarray, *, longest: int = 2) -> list[int]:
    """Choose the ``longest`` of ``rows`` (one, where two are too long), and the shortest."""
    sides = tokens.chosen_lengths[rows] + tokens.rejected_lengths[rows]
    lengths = tokens.prompt_lengths[rows] + sides
    order = np.argsort(-lengths, kind="stable")
    long = order[:longest] if lengths[order[:longest]].sum() <= _TOKENS else order[:1]
    shortest = np.setdiff1d(order[-1:], long)
    return [int(row) for row in rows[np.concatenate([long, shortest])]]


def length_matters(config: "PretrainedConfig") -> bool:
    """Return whether a distant token is treated otherwise: by a window, or changing frequencies."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    windows = getattr(text, "sliding_window", None) or any("full" not in kind for kind in kinds)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    named = rope.get("rope_type", rope.get("type", "default"))
    scaled = named != "default" or any(isinstance(value, dict) for value in rope.values())
    return bool(windows or scaled)


def shortened(
    groups: Sequence[PromptGroup], parts: tuple[int, int, int] = _PARTS
) -> list[PromptGroup]:
    """Return the pairs with the first ``parts`` tokens of prompt, chosen and rejected."""
    prompt, *sides = parts
    return [
        PromptGroup(
            group.prompt[:prompt],
            tuple(ids[:most] for ids, most in zip(group.completions, sides, strict=True)),
        )
        for group in groups
    ]


def agrees(
    module: nn.Module,
    groups: Sequence[PromptGroup],
    *,
    layout: str,
    pad_token_id: int,
    device: torch.device,
    gradients: bool,
) -> str:
    """Compare ``layout`` with padded rows; return what is wrong, empty where they agree.

    Values are compared by the sum of each completion, gradients on the parameters with one
    dimension (norms and biases), which every token of every layer reaches. Then the layout is
    compared with itself where every other side has other tokens. A short pair is tried behind
    ``groups``: a state that goes on from row to row fades over a long prompt.
    """
    groups = [*groups, _short(groups[-1])]
    trained: list[torch.Tensor] = [
        p for p in module.parameters() if p.dim() == 1 and p.requires_grad
    ]
    gradients = gradients and bool(trained)
    module.eval()

    def measured(name: str, parts: list[list[PromptGroup]]) -> _Measured:
        collate = LAYOUTS[name].collate
        batches = [collate(part, pad_token_id=pad_token_id, device=device.type) for part in parts]
        return _measured(
            module, [batch.to(device) for batch in batches], trained if gradients else []
        )

    plain = measured("padded", _alone(groups))
    low = torch.is_autocast_enabled(device.type)
    try:
        ours = measured(layout, [list(groups)])
        if problem := _differ(plain, ours, low=low):
            return problem
        whole = ours[0].view(len(groups), -1)
        moved = _leak(module, groups, whole, layout, pad_token_id=pad_token_id, device=device)
    except Exception as error:
        # What an architecture, a kernel or a compiler raises is not known beforehand.
        if is_out_of_memory(error):
            raise
        said = first_line(error)
        return said if isinstance(error, LayoutError) else f"{type(error).__name__}: {said}"
    if moved > (_LOW_LEAK if low else _LEAK):
        return f"a side's log-prob moves by {moved:.3g} nats with the tokens of other sides"
    return ""


def _short(group: PromptGroup) -> PromptGroup:
    """Make a pair of the prompt's last token with two tokens of each side."""
    return PromptGroup(group.prompt[-1:], tuple(side[:2] for side in group.completions))


def _differ(of_padded: _Measured, of_layout: _Measured, *, low: bool) -> str:
    """Return in what values or gradients differ by more than rounding; empty: in nothing."""
    (plain, plain_gradients), (ours, own_gradients) = of_padded, of_layout
    rtol, atol = (2e-2, 1.0) if low else (1e-5, 1e-3)
    if not torch.allclose(ours, plain, rtol=rtol, atol=atol):
        worst = float((ours - plain).abs().max())
        return f"log-probs of the pairs that were tried differ by {worst:.3g} nats"
    # One that is 0 in theory is rounding in both: it is judged by the size of all of them.
    total = math.sqrt(sum(float(plain_of.square().sum()) for plain_of in plain_gradients))
    for ours_of, plain_of in zip(own_gradients, plain_gradients, strict=True):
        scale = float(plain_of.norm())
        distance = float((ours_of - plain_of).norm())
        if distance > (0.15 if low else 1e-3) * scale + (1e-2 if low else 1e-5) * total + 1e-6:
            return f"gradients on the pairs that were tried differ by {distance:.3g} of {scale:.3g}"
    return ""


def not_alone(kind: str, problem: str) -> str:
    """Return the refusal of an architecture whose padded rows are not what each is alone."""
    return (
        f"{kind} gives a completion other log-probs or gradients beside others than alone, even in "
        f"padded rows ({problem}): its losses would be those of another model. Start from another "
        "model"
    )


@torch.no_grad()
def _leak(
    module: nn.Module,
    groups: Sequence[PromptGroup],
    whole: torch.Tensor,
    layout: str,
    *,
    pad_token_id: int,
    device: torch.device,
) -> float:
    """Return by how much sides move at most, in nats, where all others have other tokens.

    ``whole`` are the log-probs of ``groups`` as they are, ``[groups, sides]``. The first sides of
    all pairs stay, then the second; the others are reversed.
    """
    if whole.shape[1] == 1:
        return 0.0
    moved = 0.0
    for kept in (0, whole.shape[1] - 1):
        changed = [
            PromptGroup(
                group.prompt,
                tuple(
                    side if place == kept else np.ascontiguousarray(side[::-1])
                    for place, side in enumerate(group.completions)
                ),
            )
            for group in groups
        ]
        batch = LAYOUTS[layout].collate(changed, pad_token_id=pad_token_id, device=device.type)
        found = module(batch.to(device)).double().view(whole.shape)
        moved = max(moved, float((found - whole)[:, kept].abs().max()))
    return moved


def _alone(groups: Sequence[PromptGroup]) -> list[list[PromptGroup]]:
    """Give each completion a forward of its own with its prompt: one row sets the memory."""
    return [[PromptGroup(group.prompt, (side,))] for group in groups for side in group.completions]


@contextmanager
def _others_frozen(module: nn.Module, trained: list[torch.Tensor]) -> Iterator[None]:
    """Let no parameters but ``trained`` want gradients within: each matrix's costs its product.

    An autograd function of Python's makes those that nobody asks for too.
    """
    asked = set(map(id, trained))
    others = [p for p in module.parameters() if asked and p.requires_grad and id(p) not in asked]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _measured(
    module: nn.Module, batches: Sequence[Batch], trained: list[torch.Tensor]
) -> _Measured:
    """Return log-probs of all completions, float64, and gradients of a weighted sum of them.

    No two completions have the same weight, so none can stand for another.
    """
    weights = torch.linspace(1.0, -0.5, sum(len(batch.scored) for batch in batches))
    logps: list[torch.Tensor] = []
    gradients = [torch.zeros_like(p, dtype=torch.float64) for p in trained]
    for batch in batches:
        with torch.set_grad_enabled(bool(trained)), _others_frozen(module, trained):
            found = module(batch)
            here = weights[len(logps) : len(logps) + len(found)].to(found.device)
            if trained:
                parts = torch.autograd.grad(
                    (found.float() * here).sum(), trained, allow_unused=True
                )
                for total, part in zip(gradients, parts, strict=True):
                    if part is not None:  # a part that text does not reach, say one for images
                        total.add_(part.double())
        logps += found.detach().double()
    return torch.stack(logps), gradients
