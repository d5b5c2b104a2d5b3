"""Say what a campaign compares, what it may cost, and the smallest effect that it could show."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sdpo.stats.differences import smallest_shown

SOURCES = ("ultrafeedback", "pandalm", "polite_rude")
"""The three sources, in the order of the natural chain: each is a step."""
SEVERAL = ("sdpo", "dpo", "easy_first")
"""These arms are trained with all seeds."""
SINGLE = ("stratified", "random", "target_base", "reference_base")
"""These arms are trained with the first seed alone."""
LONGEST_H = 2.0
"""A part that would take longer on one core is refused."""
DISCORDANT = (0.05, 0.10, 0.20)
"""Before anything is known, so many pairs are supposed to be ranked otherwise by two arms."""
SPREADS = (1.0, 2.0, 4.0)
"""Before anything is known, a paired difference of gamma is supposed to have these standard
deviations, in nats."""
_OVERHEAD_S = 240.0
"""A chain of three steps takes so long on one core besides its tokens: processes, loading, gates,
publishing."""
_TEMPLATE_TOKENS = 35
_CHARACTERS_PER_TOKEN = 4.2


class Design(BaseModel):
    """A design says what is trained and measured.

    ``pairs``: of each step; ``reserve``: pairs of each source that are never trained on;
    ``characters``: of prompt and longer answer together, at most, so that nothing is cut. With
    ``lora_r`` 0 all weights train. ``suites`` are asked of every model without examples, the first
    ``limit`` documents of each; ``win_prompts`` are answered by every model for the rule ``rule``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int = Field(48, ge=4)
    reserve: int = Field(64, ge=4)
    characters: int = Field(700, ge=50)
    max_length: int = Field(384, ge=32)
    seeds: int = Field(3, ge=1, le=10)
    first_seed: int = 42
    learning_rate: float = Field(2e-5, gt=0)
    beta: float = Field(0.1, gt=0)
    batch_size: int = Field(8, ge=1)
    lora_r: int = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    suites: tuple[str, ...] = ()
    limit: int = Field(50, ge=1)
    win_prompts: int = Field(0, ge=0)
    rule: str = "on_topic"
    single: tuple[str, ...] = SINGLE
    several: tuple[str, ...] = SEVERAL
    notes: tuple[str, ...] = ()
    """What a reader has to know of the model and its data, said beside every table."""

    @property
    def tests(self) -> int:
        """Return how many differences are tested together where the first seed is compared."""
        return 2 * (len(self.several) + len(self.single) - 1)

    @property
    def reserved(self) -> int:
        """Return the reserved pairs of all sources."""
        return self.reserve * len(SOURCES)


@dataclass(frozen=True, slots=True)
class Smallest:
    """``effect`` is the smallest difference shown in 80% of all tries if ``supposed`` holds."""

    measure: str
    supposed: float
    effect: float


def smallest_effects(design: Design) -> list[Smallest]:
    """Return what the reserve could show, by what has to be supposed before anything is known.

    Normal theory for independent pairs: with a share q of pairs that two arms rank otherwise the
    standard error of the difference in accuracy is at most sqrt(q / n); that of mean gamma is the
    standard deviation of the paired differences over sqrt(n). As many differences are tested
    together as the design has (Holm's first step).
    """
    n = design.reserved
    found = []
    for measure, supposed in (("accuracy", DISCORDANT), ("gamma", SPREADS)):
        for value in supposed:
            sd = value**0.5 if measure == "accuracy" else value
            effect = smallest_shown(sd / n**0.5, tests=design.tests)
            assert effect is not None  # only an unknown error gives none
            found.append(Smallest(measure, value, effect))
    return found


def tokens_of(pairs: int, characters: float) -> float:
    """Return roughly how many tokens ``pairs`` pairs of so many characters have on average."""
    return pairs * (characters / _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS)


def part_seconds(
    design: Design, *, characters: float, parameters: int, flops_per_s: float
) -> float:
    """Return roughly how long a part takes: a chain from S, measured after each step.

    ``characters``: of an average pair, its prompt once. A forward is two operations for each weight
    and token, a backward four, two where adapters alone train; half of the rate is reached.
    """
    steps = len(SOURCES)
    trained = tokens_of(design.pairs * steps, characters)
    measured = tokens_of((design.pairs + design.reserve) * steps, characters) * (steps + 1)
    forwards = measured + trained * (3 if not design.lora_r else 2)
    return _OVERHEAD_S + 2 * parameters * forwards / (flops_per_s / 2)


def read_design(path: Path) -> Design | None:
    """Return the design of the campaign whose results are kept beside ``path``; None before it."""
    if not path.is_file():
        return None
    return Campaign.model_validate_json(path.read_bytes()).design


class Campaign(BaseModel):
    """This is what ``campaign.json`` says, written before anything runs.

    ``sources``: of each the rows and the digest of its file; ``smallest``: the smallest effects
    that could be shown, by what is supposed; ``minutes``: estimated for a part on one core.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    design: Design
    model: str
    sources: dict[str, dict[str, int | str]]
    smallest: list[dict[str, float | str]]
    minutes: float
