"""Lay out the tokens of prompts and completions for a forward pass.

``padded`` is the plain form, ``packed`` leaves out the padding, ``shared`` also computes every
prompt once. All give the same log-probs (arXiv 2410.20305 for the shared prompt); the choice
affects only time, memory and the last bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sdpo.model.layouts import packed, padded, shared
from sdpo.model.layouts.batch import Batch, PromptGroup

__all__ = ["LAYOUTS", "Batch", "Layout", "PromptGroup"]


class Collate(Protocol):
    """A collate function lays groups out as a batch."""

    def __call__(self, groups: Sequence[PromptGroup], *, pad_token_id: int, device: str) -> Batch:
        """Lay out ``groups``, which all have the same number of completions, for ``device``."""


def _rows(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
    longest: np.ndarray = completions.shape[1] * (prompts + completions.max(axis=1))
    return longest


def _sequences(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
    tokens: np.ndarray = completions.shape[1] * prompts + completions.sum(axis=1)
    return tokens


def _prompt_once(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
    tokens: np.ndarray = prompts + completions.sum(axis=1)
    return tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout's ``collate`` arranges groups, and its ``tokens`` says what each costs in a forward.

    ``tokens(prompts [items], completions [items, sides])`` are lengths in tokens. Where ``padded``,
    items of a forward cost as much as the longest of them.
    """

    name: str
    collate: Collate
    tokens: Callable[[np.ndarray, np.ndarray], np.ndarray]
    padded: bool


LAYOUTS = {
    "padded": Layout("padded", padded.collate, _rows, padded=True),
    "packed": Layout("packed", packed.collate, _sequences, padded=False),
    "shared": Layout("shared", shared.collate, _prompt_once, padded=False),
}
