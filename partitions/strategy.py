"""Define what a partition strategy is, the settings it reads, and the registry of strategies.

This module owns the settings' form and the registry. What a strategy does is in its own file.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from partitions.errors import PartitionError
from partitions.pairs import Pairs

ORDERS = ("given", "easy_first", "hard_first")


@dataclass(frozen=True)
class PartitionSettings:
    """A recipe says by these settings which pair goes to which step. Lists become tuples.

    strategy: name of a registered strategy.
    order: the order of steps: ``given``, ``easy_first`` or ``hard_first``. ``given`` is the
    recipe's order
        for natural steps, and easy first for curricula.
    groups: natural steps made of several sources, by name; empty: one source per step.
    fractions: share of the pairs per step, for drawn strategies; sums to 1.
    strata: columns whose values are spread evenly over the steps.
    per_token: whether a margin is counted per token and not summed over the completion.
    seed: the seed of the draw, 0 to 2**64 - 1.
    rehearse: how many pairs of earlier steps a step meets again, as a share of its own; whatever
        the strategy.
    """

    strategy: str = "natural"
    order: str = "given"
    groups: tuple[tuple[str, ...], ...] = ()
    fractions: tuple[float, ...] = (0.1667, 0.8333)
    strata: tuple[str, ...] = ("source",)
    per_token: bool = False
    seed: int = 42
    rehearse: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(tuple(group) for group in self.groups))
        object.__setattr__(self, "fractions", tuple(float(share) for share in self.fractions))
        object.__setattr__(self, "strata", tuple(self.strata))
        if self.order not in ORDERS:
            raise PartitionError(f"partition.order: {unknown(self.order, ORDERS)}")
        if not 0 <= self.seed < 2**64:
            raise PartitionError(f"partition.seed must be from 0 to 2**64 - 1, not {self.seed}")
        if not 0 <= self.rehearse <= 1:
            raise PartitionError(f"partition.rehearse must be from 0 to 1, not {self.rehearse}")

    def changed(self) -> list[str]:
        """Return the names of the settings that differ from their default, ``strategy`` aside."""
        return [
            f.name
            for f in fields(self)
            if f.name != "strategy" and getattr(self, f.name) != f.default
        ]


@dataclass(frozen=True, eq=False)
class Assignment:
    """A strategy's decision is a table of pair and step.

    step_of: int32[m], the step of each entry, from 1.
    rows: intp[m], the pair of each entry; None: entry i is pair i. A pair may be in several steps,
        and is in one at least.
    contents: what each step is made of, in words; as many as there are steps.
    measured: summaries of the features that the decision rests on, so that it can be explained:
        name of the summary -> what it is of -> value.
    """

    step_of: NDArray[np.int32]
    contents: tuple[str, ...]
    rows: NDArray[np.intp] | None = None
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def _nothing(_settings: PartitionSettings) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True)
class Strategy:
    """A way to assign pairs to steps; all that is not a function is written as a literal.

    uses: the settings that it reads, besides ``strategy``.
    when_empty: what the user can change where a step is left without pairs.
    needs: names of the features that must be measured before ``assign`` can be called.
    assign: the decision. It depends on the pairs and the settings, never on the order of rows; the
        caller checks what comes back.
    """

    name: str
    description: str
    uses: frozenset[str]
    when_empty: str
    assign: Callable[[Pairs, PartitionSettings], Assignment]
    needs: Callable[[PartitionSettings], frozenset[str]] = _nothing


_STRATEGIES: dict[str, Strategy] = {}


def register(strategy: Strategy, *, again: bool = False) -> None:
    """Make a strategy known by its name.

    Raises :class:`PartitionError` for a name that is taken, unless ``again`` says that it is the
    same package's."""
    if strategy.name in _STRATEGIES and not again:
        raise PartitionError(f"a partition strategy `{strategy.name}` is registered already")
    _STRATEGIES[strategy.name] = strategy


def get(name: str) -> Strategy:
    """Return the strategy of this name; :class:`PartitionError` names the nearest known one."""
    if name not in _STRATEGIES:
        raise PartitionError(f"partition.strategy: {unknown(name, names())}")
    return _STRATEGIES[name]


def names() -> tuple[str, ...]:
    """Return the names of the registered strategies, in the order of registration."""
    return tuple(_STRATEGIES)


def unknown(name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is unknown, which names are known, and which of them is nearest."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"`{name}` is not known (known: {', '.join(known) or 'none'}){hint}"
