"""Define the settings that say which pair goes to which step."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sdpo.config.annotations import NO_UNIT, SHARE, NotIdentity, SpelledOut, Unit
from sdpo.config.choices import OneOf
from sdpo.config.group import Group
from sdpo.config.strategies import strategy_names, strategy_uses

_FROM_THE_FIRST = SpelledOut(of=("plan",))


def _known_strategy(name: object) -> object:
    if isinstance(name, str):
        strategy_uses(name)
    return name


StrategyName = Annotated[str, BeforeValidator(_known_strategy), OneOf(strategy_names)]


class PartitionConfig(Group):
    """These settings say which pair goes to which step."""

    main_setting = "strategy"

    strategy: Annotated[
        StrategyName,
        NotIdentity("a plan's identity has it beside the other settings", of=("plan",)),
    ] = Field(
        "natural",
        description="`natural`: one source per step; `stratified`: fractions within strata; "
        "`random`: fractions of everything (the control); `single`: all in one step (plain DPO); "
        "curricula cut at quantiles: `score_gap` (rating difference), `reference_margin` (gamma "
        "under M_0), `length` (tokens).",
    )
    order: Annotated[Literal["given", "easy_first", "hard_first"], _FROM_THE_FIRST] = Field(
        "given",
        description="Order of steps. `natural`: as the sources stand in the recipe, or by the "
        "share of pairs with gamma_S > 0, largest first (sDPO v2) or last. Curricula: large gap, "
        "large margin or short pairs first (`given`, `easy_first`), or last.",
    )
    groups: Annotated[list[list[str]], _FROM_THE_FIRST] = Field(
        [],
        description="Natural steps made of several sources, by name; empty: one source each. A "
        "source that several groups name is trained on in each of their steps.",
    )
    fractions: Annotated[list[float], Unit(SHARE), _FROM_THE_FIRST] = Field(
        [0.1667, 0.8333],
        description="Share of the pairs per step, for `stratified`, `random` and the curricula; "
        "sums to 1.",
    )
    strata: Annotated[list[str], _FROM_THE_FIRST] = Field(
        ["source"],
        description="Columns whose values are spread evenly over the steps (`stratified`): "
        "`source`, or a dotted path of the data.",
    )
    per_token: bool = Field(
        False, description="`reference_margin`: gamma per token, not summed over the completion."
    )
    rehearse: Annotated[float, Unit(SHARE)] = Field(
        0.0,
        ge=0,
        le=1,
        description="Pairs of earlier steps that each step meets again, against forgetting, as a "
        "share of the step's own pairs: 0.1 adds a tenth. Drawn by the seed; as many as there are.",
    )
    seed: Annotated[int, Unit(NO_UNIT), _FROM_THE_FIRST] = Field(
        42, ge=0, lt=2**63, description="Seed of the draw."
    )
