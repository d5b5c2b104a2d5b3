"""How tokens are drawn from a model: settings alone, known without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Temperature 1 and ``top_k`` 0 is the model's own distribution."""

    name: str
    temperature: float = 1.0
    top_k: int = 0
