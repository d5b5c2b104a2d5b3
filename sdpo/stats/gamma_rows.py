"""Define what is said of gamma: the rows of ``gamma.json``, and what the report says beside them.

gamma_M(x) = log M(chosen|x) - log M(rejected|x), in nats (sDPO, arXiv 2403.19270, section 3.2).
Bounds ``*_low`` and ``*_high`` are those of 95% intervals. Where a number cannot be had (no pairs,
one prompt) it is None. What an earlier version did not write has a default.
"""

from pydantic import BaseModel, ConfigDict, JsonValue


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Statistics(_Row):
    """Statistics describe gamma over ``pairs`` pairs.

    ``se`` is sd / sqrt(pairs), as if pairs were independent. ``ranking_accuracy`` is the share of
    pairs with gamma > 0.
    """

    pairs: int
    mean: float | None
    sd: float | None = None
    se: float | None = None
    quantiles: dict[str, float | None] = {}
    ranking_accuracy: float | None = None
    per_token_mean: float | None = None
    length_correlation: float | None = None


class Difference(_Row):
    """A difference is d = gamma now - gamma earlier on the ``pairs`` that both have.

    ``accuracy`` is the share of pairs whose gamma rose, ties counting 1/2; ``share_above`` leaves
    ties out. ``margin`` = beta * mean(d).
    """

    pairs: int
    mean: float | None
    low: float | None
    high: float | None
    share_above: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    ranking_accuracy_change: float | None = None
    ranking_accuracy_change_low: float | None = None
    ranking_accuracy_change_high: float | None = None


class _Probe(_Row):
    """These are the probe that was measured, and whether it is a reserve or partition entirely."""

    probe: str
    whole: bool = False


class ProbeRow(Statistics, _Probe):
    """A row says what a model prefers on the pairs of a probe, and how that differs from S."""

    mean_low: float | None = None
    mean_high: float | None = None
    ranking_accuracy_low: float | None = None
    ranking_accuracy_high: float | None = None
    truncated_share: float | None = None
    vs_S: Difference | None = None  # noqa: N815 - as in the file


class GammaRow(ProbeRow):
    """A row of ``gamma.json`` is that of a model M_t; ``complete``: without what was truncated."""

    model: str
    prompts: int = 0
    complete: Statistics | None = None
    vs_previous: Difference | None = None
    accuracy_vs_previous: float | None = None
    accuracy_vs_S: float | None = None  # noqa: N815 - as in the file

    def as_json(self) -> dict[str, JsonValue]:
        """Return what the file has, in the order in which it has it."""
        told = self.model_dump(mode="json")
        return {name: told[name] for name in _ORDER}


_ORDER = (
    *("model", "probe", "whole", "prompts", *Statistics.model_fields),
    *("mean_low", "mean_high", "ranking_accuracy_low", "ranking_accuracy_high"),
    *("truncated_share", "complete", "vs_previous", "vs_S"),
    *("accuracy_vs_previous", "accuracy_vs_S"),
)


class Contamination(_Row):
    """A gap is how much more M_``model`` moved from S on D_``step`` than on the reserve, in nats.

    ``gap`` = ``mean`` - ``reserve_mean``, means of the change from S; ``share_above_gap`` is that
    of the shares of pairs whose gamma rose. ``before_training``: the model has not trained on
    D_step, so that 0 is expected, and ``warning`` says that it is not.
    """

    step: int
    model: str
    before_training: bool
    pairs: int
    reserve_pairs: int
    mean: float
    reserve_mean: float
    gap: float
    low: float | None
    high: float | None
    share_above_gap: float
    warning: bool
