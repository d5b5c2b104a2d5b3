"""Define the settings of preference data: sources, the reserve, tokens."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sdpo.config.annotations import BY_CONTENT, NO_UNIT, SHARE, NotIdentity, SpelledOut, Unit
from sdpo.config.choices import OneOf
from sdpo.config.generating import GenerateConfig
from sdpo.config.group import Group
from sdpo.config.variables import Variables
from sdpo.layouts import layout_facts, layout_names

_BEFORE_TOKENS = NotIdentity("tokens have the digest of the pairs that it gives", of=("tokens",))


def _known_layout(name: str) -> str:
    if name:
        layout_facts(name)
    return name


def _layouts() -> list[str]:
    return ["", *layout_names()]


class ColumnsConfig(Group):
    """A source keeps its fields at these dotted paths; an empty one is recognised from the data."""

    prompt: str = Field("", description="Column of the prompt (text or messages).")
    chosen: str = Field("", description="Column of the preferred answer (text or messages).")
    rejected: str = Field("", description="Column of the other answer (text or messages).")
    system: str = Field("", description="Column of the system message.")
    chosen_score: str = Field("", description="Column of the chosen answer's score.")
    rejected_score: str = Field("", description="Column of the rejected answer's score.")
    answers: str = Field(
        "", description="Column of a list of answers, of which pairs are made by scores or ranks."
    )
    answer_text: str = Field("", description="Path of the text within an answer of the list.")
    scores: str = Field(
        "",
        description="List of scores beside the answers, or a score's path in each: more is better.",
    )
    ranks: str = Field(
        "", description="List of ranks beside the answers, or a rank's path in each: 1 is the best."
    )
    winner: str = Field(
        "", description="Column that says which of `chosen` and `rejected` is the better answer."
    )
    chosen_wins: str = Field("", description="Value of `winner` by which `chosen` is better.")
    rejected_wins: str = Field("", description="Value of `winner` by which `rejected` is better.")


class SourceConfig(Group):
    """These settings describe one source of preference pairs."""

    main_setting = "path"

    name: Annotated[
        str, NotIdentity("told beside the settings, as a run's and its data's sources")
    ] = Field("", description="Name of the source; empty: the file's or data set's name.")
    path: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="JSON, JSONL (also .gz), CSV, Parquet or Arrow file, a folder saved by "
        "`datasets`, a hub name, or `demo:<name>` for data that the demo generates.",
    )
    revision: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "", description="Branch, tag or commit of a hub data set."
    )
    subset: str = Field("", description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split of a hub data set or saved folder.")
    format: Literal["auto", "chat", "text"] = Field(
        "auto",
        description="`chat`: through the chat template; `text`: prompt and prompt + completion "
        "encoded as they are; `auto`: chat where the tokenizer has a template.",
    )
    columns: ColumnsConfig = Field(
        ColumnsConfig(), description="Where the fields are, if they are not found by themselves."
    )
    layout: Annotated[str, AfterValidator(_known_layout), OneOf(_layouts)] = Field(
        "",
        description="Reader of rows whose columns alone do not tell: `helpsteer3`, or one "
        "that `sdpo plugins` lists; empty: recognised by columns.",
    )
    chat_template_kwargs: Variables = Field(
        {},
        title="Variables of the chat template",
        description="Variables that the chat template is given for this source; they win over the "
        "model's, and a row's `chat_template_kwargs` over them.",
    )
    contradictions: Literal["refuse", "swap", "keep"] = Field(
        "refuse",
        description="What becomes of a pair whose chosen side scores less than the rejected one.",
    )
    ranked_by: Literal["auto", "scores", "ranks", "order"] = Field(
        "auto",
        description="What ranks a list of answers; `order`: the best stands first; `auto`: the "
        "scores or the ranks that are there.",
    )
    pairing: Literal["best_worst", "best_random", "all"] = Field(
        "best_worst",
        description="Pairs of a list of answers: the best against the worst, or against one drawn "
        "of those that are worse; or all that differ.",
    )
    min_score_gap: Annotated[float, Unit("of the data's own scores")] = Field(
        0, ge=0, description="Leave out pairs whose scores differ by less; 0: none."
    )
    weight: Annotated[float, Unit(NO_UNIT)] = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Share in a mixture: of the sources that have a weight as many pairs are drawn "
        "by the data seed as there can be in these proportions, none twice; 0: all pairs.",
    )
    max_pairs: Annotated[int, Unit("pairs")] = Field(
        0, ge=0, description="Use at most this many pairs, drawn by the data seed; 0: all."
    )
    train: Annotated[
        bool,
        NotIdentity("all pairs are prepared, whatever is trained on", of=("data",)),
    ] = Field(
        True,
        title="Train on its pairs",
        description="Off: no step has its pairs; they give the reserve, and prompts to generated "
        "sources.",
    )
    generate: Annotated[
        GenerateConfig,
        NotIdentity("pairs that are there are prepared before others are made", of=("data",)),
    ] = Field(
        GenerateConfig(),
        title="Generated pairs",
        description="Where it names prompts, the source has no `path`: the model before the step "
        "makes its pairs. Its steps come after those of the other sources.",
    )


class ReserveConfig(Group):
    """The reserve is pairs set aside before anything is trained: the fixed probe of every model.

    Per source the pairs with the smallest prompt hashes, until ``pairs`` of them, or without it
    max(fraction, min(min_pairs, max_fraction)) of them, are set aside.
    """

    fraction: Annotated[float, Unit(SHARE), SpelledOut(of=("reserve",))] = Field(
        0.03, ge=0, lt=1, description="Share of each source, at least."
    )
    min_pairs: Annotated[int, Unit("pairs"), SpelledOut(of=("reserve",))] = Field(
        64, ge=0, description="Pairs of each source wanted, at least."
    )
    max_fraction: Annotated[float, Unit(SHARE), SpelledOut(of=("reserve",))] = Field(
        0.10, ge=0, lt=1, description="Share of a source that `min_pairs` may take, at most."
    )
    pairs: Annotated[int, Unit("pairs")] = Field(
        0,
        ge=0,
        description="Pairs of each source, by whole prompts, instead of the shares; 0: by shares.",
    )
    key: Annotated[str, SpelledOut(of=("reserve",))] = Field(
        "sdpo", description="Key of the hash that chooses the reserved prompts."
    )
    compare_on: Annotated[
        Literal["all", "report"],
        NotIdentity("it says which measured pairs may compare models, and changes none of them"),
    ] = Field(
        "all",
        description="Reserved pairs by which models are compared and promoted: `all`, or the "
        "`report` part alone, since settings were chosen by the other one. A sweep sets it.",
    )


class DataConfig(Group):
    """These settings name preference data and say how it becomes tokens."""

    sources: Annotated[list[SourceConfig], _BEFORE_TOKENS] = Field(
        [], description="Sources of preference pairs, in order; the first one keeps a duplicate."
    )
    reserve: Annotated[
        ReserveConfig,
        NotIdentity("all pairs are prepared, whatever is set aside", of=("data", "tokens")),
    ] = Field(ReserveConfig(), description="Pairs that are never trained on.")
    max_length: Annotated[
        int,
        Unit("tokens"),
        SpelledOut(of=("tokens",)),
        NotIdentity(
            "pairs are prepared as text; tokens have an identity of their own", of=("data",)
        ),
    ] = Field(
        1024, ge=8, description="Tokens of prompt + completion that are kept, from the start."
    )
    max_prompt_length: Annotated[
        int,
        Unit("tokens"),
        NotIdentity(
            "pairs are prepared as text; tokens have an identity of their own", of=("data",)
        ),
    ] = Field(
        0,
        ge=0,
        description="Tokens of a prompt that are kept, from its end, a BOS in front among them; "
        "0: all. Then `max_length` cuts prompt + completion.",
    )
    seed: Annotated[int, Unit(NO_UNIT), _BEFORE_TOKENS] = Field(
        42, ge=0, description="Seed of `max_pairs`, `limit`, `weight` and drawn answers."
    )
    limit: Annotated[int, Unit("pairs"), _BEFORE_TOKENS] = Field(
        0,
        title="Limit for a smoke run",
        ge=0,
        description="Pairs per source for a smoke run, of those whose tokens can be used; 0: all.",
    )

    @property
    def given(self) -> list[SourceConfig]:
        """Return the sources whose pairs are there when the run starts."""
        return [source for source in self.sources if not source.generate.enabled]

    @property
    def generated(self) -> list[SourceConfig]:
        """Return the sources whose pairs are made by the models of the run."""
        return [source for source in self.sources if source.generate.enabled]

    @property
    def as_given(self) -> "DataConfig":
        """Return the settings without generated sources: what is prepared at the start."""
        return self.model_copy(update={"sources": self.given}) if self.generated else self
