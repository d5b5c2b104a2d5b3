"""Define the settings of a judge (a rule, a reward model, an endpoint) and of win rates."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sdpo.config.annotations import BY_CONTENT, NO_UNIT, NotIdentity, ReadIf, Unit
from sdpo.config.choices import OneOf
from sdpo.config.group import Group
from sdpo.judges import check_rule, rule_names

Kind = Literal["", "rule", "reward_model", "endpoint"]

_OF_ENDPOINT = ReadIf(settings=("endpoint",), otherwise=": the judge is no endpoint")
_HOW = NotIdentity("how fast and how often is asked changes no verdict")


def _known_rule(name: str) -> str:
    if name:
        check_rule(name)
    return name


def _rules() -> list[str]:
    return ["", *rule_names()]


class JudgeConfig(Group):
    """A judge is one of three: a rule by name, a reward model, or an OpenAI-compatible endpoint.

    A rule and a reward model give every answer a score. An endpoint compares two answers, in both
    orders.
    """

    rule: Annotated[str, AfterValidator(_known_rule), OneOf(_rules)] = Field(
        "",
        description="Name of an installed rule: `on_topic`, `asks_back`, `length`, or one that "
        "`sdpo plugins` lists.",
    )
    reward_model: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="Folder or hub name of a sequence classifier with one output and a chat "
        "template; it reads answers by its own tokenizer.",
    )
    reward_revision: Annotated[
        str,
        NotIdentity(BY_CONTENT),
        ReadIf(settings=("reward_model",), otherwise=": the judge is no reward model"),
    ] = Field("", description="Branch, tag or commit of a reward model on the hub.")
    endpoint: str = Field(
        "",
        description="Base address of an OpenAI-compatible server (`https://host/v1`), which the "
        "machine's owner has to name in SDPO_JUDGE_ENDPOINTS. Its key is in SDPO_JUDGE_KEY.",
    )
    model: Annotated[str, _OF_ENDPOINT] = Field(
        "", description="Name of the model that the endpoint is asked for."
    )
    prompt_file: Annotated[str, _OF_ENDPOINT, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="Text of your own that asks for a verdict, with {prompt}, {answer_a} and "
        "{answer_b} in it; the judge answers A, B or tie. Empty: the project's.",
    )
    answer_tokens: Annotated[int, Unit("tokens"), _OF_ENDPOINT] = Field(
        16,
        ge=1,
        description="Tokens of a verdict, at most; a model that thinks first needs more.",
    )
    max_tokens_total: Annotated[int, Unit("tokens"), _OF_ENDPOINT, _HOW] = Field(
        0,
        title="Ceiling of tokens",
        ge=0,
        description="Tokens that may be spent on a run's verdicts in all, read and written; an "
        "endpoint needs it.",
    )
    requests_per_minute: Annotated[int, Unit("requests"), _OF_ENDPOINT, _HOW] = Field(
        0, ge=0, description="Requests begun in a minute, at most; 0: no limit."
    )
    parallel: Annotated[int, Unit("requests"), _OF_ENDPOINT, _HOW] = Field(
        4, ge=1, le=64, description="Requests under way at a time, at most."
    )
    timeout_s: Annotated[float, Unit("s"), _OF_ENDPOINT, _HOW] = Field(
        60.0, title="Time for an answer", gt=0, description="Wait so long for an answer."
    )
    retries: Annotated[int, Unit("times"), _OF_ENDPOINT, _HOW] = Field(
        4, ge=0, le=20, description="Ask again so often where the server is busy or silent."
    )

    @property
    def kind(self) -> Kind:
        """Return which of the three it is; empty: no judge is named."""
        kinds: tuple[Kind, ...] = ("rule", "reward_model", "endpoint")
        return next((kind for kind in kinds if getattr(self, kind)), "")

    @property
    def is_pairwise(self) -> bool:
        """Return whether the judge compares two answers, and gives none a score by itself."""
        return self.kind == "endpoint"

    @model_validator(mode="after")
    def _is_one(self) -> "JudgeConfig":
        named = [kind for kind in ("rule", "reward_model", "endpoint") if getattr(self, kind)]
        if len(named) > 1:
            raise ValueError(
                f"a judge is one thing, and {' and '.join(named)} are given: leave one"
            )
        if self.endpoint and not self.model:
            raise ValueError("`endpoint` needs the name of the model to ask for (`model`)")
        if self.endpoint and not self.max_tokens_total:
            raise ValueError(
                "`endpoint` needs `max_tokens_total`, the ceiling of tokens that may be spent on it"
            )
        return self


class WinRateConfig(Group):
    """Every model answers prompts, and a judge says which model's answers are better."""

    judge: JudgeConfig = Field(JudgeConfig(), description="Who judges; none: no win rates.")
    prompts: Annotated[int, Unit("prompts")] = Field(
        200, ge=1, description="Prompts that every model answers, at most: reserved ones."
    )
    prompt_file: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        title="File of prompts",
        description="Local file of prompts (JSON, JSONL, CSV, Parquet, Arrow) that are answered in "
        "place of reserved ones, its first.",
    )
    prompt_column: Annotated[
        str, ReadIf(settings=("prompt_file",), otherwise=": `prompt_file` names no file")
    ] = Field("prompt", description="Column of `prompt_file` with the prompt (text or messages).")
    samples: Annotated[int, Unit("answers")] = Field(
        1, ge=1, description="Answers to a prompt by each model."
    )
    max_new_tokens: Annotated[int, Unit("tokens")] = Field(
        256, title="Length of an answer", ge=1, description="Tokens of an answer, at most."
    )
    temperature: Annotated[float, Unit(NO_UNIT)] = Field(
        1.0, gt=0, le=2, description="Temperature by which answers are drawn."
    )
    seed: Annotated[int, Unit(NO_UNIT)] = Field(
        42, ge=0, description="Seed of the answers, and of the bootstrap."
    )

    @property
    def is_on(self) -> bool:
        """Return whether there is a judge."""
        return bool(self.judge.kind)
