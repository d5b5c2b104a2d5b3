"""Keep how far a training is, and what it settled on for the memory that there is."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sdpo.errors import Fault
from sdpo.store.budget import Budget, halved
from sdpo.system.out_of_memory import remedies


@dataclass(slots=True, kw_only=True)
class Progress:
    """Progress says how far a training is, and how many tokens its micro-batches have.

    ``on_lowered`` is called with a smaller budget before it is used.
    """

    step: int = 0
    budget: Budget = field(default_factory=Budget)
    on_lowered: Callable[[Budget], None] = lambda budget: None

    def lower(self, step: int, *, before: int, largest: int, lanes: int, fault: str) -> int:
        """Settle on a budget smaller than ``before`` from optimizer step ``step`` on; return it.

        ``largest``: the tokens of the largest item; ``fault``: what ran out of memory.

        Raises:
            Fault: a micro-batch already has one item alone.
        """
        tokens = halved(before, largest=largest)
        if not tokens:
            fewer = "launch.threads: 1, for one at a time, " if lanes > 1 else ""
            raise Fault(
                f"out of memory with one pair of {largest} tokens in a micro-batch: "
                f"{remedies(fewer=fewer)} ({fault})"
            )
        self.budget = self.budget.lowered(step, to=tokens)
        self.on_lowered(self.budget)
        return tokens
