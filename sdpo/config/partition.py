"""Which pair goes to which step."""

from typing import Literal, get_args

from pydantic import Field

from sdpo.config.group import Group

Strategy = Literal[
    "natural", "stratified", "random", "single", "score_gap", "reference_margin", "length"
]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


class PartitionConfig(Group):
    """Which pair goes to which step."""

    strategy: Strategy = Field(
        "natural",
        description="`natural`: one source per step; `stratified`: fractions within strata; "
        "`random`: fractions of everything (the control); `single`: all in one step (plain DPO); "
        "curricula cut at quantiles: `score_gap` (rating difference), `reference_margin` (gamma "
        "under M_0), `length` (tokens).",
    )
    order: Literal["given", "easy_first", "hard_first"] = Field(
        "given",
        description="Order of steps. `natural`: as the sources stand in the recipe, or by the "
        "share of pairs with gamma_S > 0, largest first (sDPO v2) or last. Curricula: large gap, "
        "large margin or short pairs first (`given`, `easy_first`), or last.",
    )
    groups: list[list[str]] = Field(
        [], description="Natural steps made of several sources, by name; empty: one source each."
    )
    fractions: list[float] = Field(
        [0.1667, 0.8333],
        description="Share of the pairs per step, for `stratified`, `random` and the curricula; "
        "sums to 1.",
    )
    strata: list[str] = Field(
        ["source"],
        description="Columns whose values are spread evenly over the steps (`stratified`): "
        "`source`, or a dotted path of the data.",
    )
    per_token: bool = Field(
        False, description="`reference_margin`: gamma per token, not summed over the completion."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the draw.")
