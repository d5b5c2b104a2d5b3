"""Define how tokens are drawn from a model: settings alone, known without torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A sampler with temperature 1, ``top_k`` 0 and ``top_p`` 1 draws from the model itself.

    ``top_p``: it draws from the likeliest tokens that together have this share of the probability.
    """

    name: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


EXACT, PAPER = "exact", "paper"
SAMPLERS: Mapping[str, Sampler] = {
    EXACT: Sampler(name=EXACT),
    # arXiv 2502.01237, section 4: temperature 0.9, top-k 40. Its code takes untempered log-ratios
    # and leaves out the first token of an answer.
    PAPER: Sampler(name=PAPER, temperature=0.9, top_k=40),
}
