"""Define the settings of a source that is generated: its pairs are made by M_{t-1} for step t."""

from typing import Annotated, Literal

from pydantic import Field

from sdpo.config.annotations import BY_CONTENT, NO_UNIT, SHARE, NotIdentity, ReadIf, Unit
from sdpo.config.group import Group
from sdpo.config.judging import JudgeConfig

_OF_SERVER = ReadIf(settings=("engine",), equal_to="openai", otherwise=" on engine `{value}`")
_HOW = NotIdentity("how samples are asked for, not which")
_OF_FILE = ReadIf(settings=("prompts",), otherwise=": `prompts` names no file")
_SHOWN = NotIdentity("what is shown of a round, not what it is made of")
_AFTER_SAMPLES = ReadIf(settings=("pair",), equal_to="top_bottom", otherwise=" on pair `{value}`")


class RoundJudgeConfig(JudgeConfig):
    """Samples are scored by a judge, or by the implicit reward of the model that wrote them."""

    main_setting = "rule"

    implicit: bool = Field(
        False,
        description="Score a sample by beta log(M_{t-1}/S), the reward that DPO has trained into "
        "the model (DICE, arXiv 2406.09760). It needs a step before.",
    )
    implicit_beta: Annotated[
        float,
        Unit(NO_UNIT),
        ReadIf(settings=("implicit",), otherwise=": the judge is not `implicit`"),
    ] = Field(0.1, gt=0, description="Factor of the implicit reward.")


class GenerateConfig(Group):
    """Pairs of a generated source are made when the chain has come to their step.

    The model before the step answers prompts, a judge scores the answers, and pairs are made of
    those that differ. The source is a generated one where it names prompts.
    """

    main_setting = "prompts_of"

    prompts: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="File of prompts (JSON, JSONL, CSV, Parquet, Arrow), folder saved by "
        "`datasets`, or name of a data set of the hub.",
    )
    prompts_split: Annotated[str, _OF_FILE] = Field(
        "train", description="Split of `prompts`, where it has splits."
    )
    prompts_subset: Annotated[str, _OF_FILE] = Field(
        "", description="Configuration of a hub data set."
    )
    prompts_revision: Annotated[str, NotIdentity(BY_CONTENT), _OF_FILE] = Field(
        "", description="Branch, tag or commit of a hub data set; resolved to a commit."
    )
    prompt_column: Annotated[str, _OF_FILE] = Field(
        "prompt", description="Column of `prompts` with the prompt (text or messages)."
    )
    prompts_of: str = Field(
        "", description="Name of another source of the recipe, whose prompts are answered."
    )
    rounds: Annotated[int, Unit("steps")] = Field(
        1, ge=1, le=100, description="Steps that the source makes, one after another."
    )
    share: Annotated[float, Unit(SHARE)] = Field(
        0.0,
        title="Share of the step",
        ge=0,
        lt=1,
        description="Rounds join the last steps of the data, and make this share of each one's "
        "pairs, or fewer where there are no more; 0: rounds are steps of their own.",
    )
    per_round: Annotated[int, Unit("prompts")] = Field(
        0, ge=0, description="Prompts of a round, drawn by the seed; 0: all that are left."
    )
    again: bool = Field(False, description="Draw prompts again that an earlier round has answered.")
    engine: Literal["transformers", "openai"] = Field(
        "transformers",
        description="What generates: transformers, in a process of this project, or `openai`: an "
        "OpenAI-compatible server (vLLM, SGLang, ...) that `serve` starts on the model.",
    )
    serve: Annotated[list[str], _OF_SERVER] = Field(
        [],
        description="The server's command, an argument each, without a shell: {model} is the "
        "folder of the model, {port} the port to listen on. The machine's owner has to name the "
        "same command in SDPO_SERVE.",
    )
    serve_ready_s: Annotated[float, Unit("s"), _OF_SERVER, _HOW] = Field(
        900.0, title="Time to serve", gt=0, description="Wait so long until the server serves."
    )
    parallel: Annotated[int, Unit("requests"), _OF_SERVER, _HOW] = Field(
        32, ge=1, le=1024, description="Requests to the server under way at a time, at most."
    )
    max_tokens_total: Annotated[int, Unit("tokens"), _HOW] = Field(
        0,
        title="Ceiling of tokens",
        ge=0,
        description="Tokens that a round's samples may have in all; 0: no ceiling. The run stops "
        "there, keeps what was drawn, and goes on with a higher one.",
    )
    max_minutes: Annotated[float, Unit("minutes"), _HOW] = Field(
        0.0,
        title="Ceiling of time",
        ge=0,
        description="Minutes that a round's sampling may take at a time; 0: no ceiling. The run "
        "stops then, keeps what was drawn, and goes on when it is run again.",
    )
    n: Annotated[int, Unit("samples")] = Field(
        8, ge=2, le=1024, title="Samples of a prompt", description="Samples of each prompt."
    )
    temperature: Annotated[float, Unit(NO_UNIT)] = Field(
        1.0, gt=0, description="Logits are divided by it."
    )
    top_p: Annotated[float, Unit(SHARE)] = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw from the likeliest tokens that have this share of the probability.",
    )
    max_new_tokens: Annotated[int, Unit("tokens")] = Field(
        512, ge=1, description="Tokens of a sample, at most."
    )
    unfinished: Literal["drop", "keep"] = Field(
        "drop", description="What becomes of a sample that does not end within its tokens."
    )
    judge: RoundJudgeConfig = Field(RoundJudgeConfig(), description="What scores the samples.")
    length_penalty: Annotated[float, Unit("of the judge's score, a token")] = Field(
        0.0,
        ge=0,
        description="Taken off a sample's score for each of its tokens (arXiv 2406.11817).",
    )
    pair: Literal["best_worst", "best_random", "top_bottom"] = Field(
        "best_worst",
        title="Pairing",
        description="Pairs of a prompt: the best sample against the worst, or against one drawn "
        "of those that are worse; `top_bottom`: the best `k` against the worst `k`, in turn.",
    )
    k: Annotated[int, Unit("pairs"), _AFTER_SAMPLES] = Field(
        2, ge=1, title="Pairs of a prompt", description="Pairs of a prompt by `top_bottom`."
    )
    min_margin: Annotated[float, Unit("of the judge's score")] = Field(
        0.0, ge=0, description="Leave out pairs whose scores differ by less; ties always are."
    )
    held_out: Annotated[int, Unit("prompts"), _SHOWN] = Field(
        32,
        title="Held-out prompts",
        ge=0,
        description="Reserved prompts that the models before and after each round answer once, for "
        "the report, scored by the same judge where it is a rule or a reward model. 0: none.",
    )
    seed: Annotated[int, Unit(NO_UNIT)] = Field(
        42, ge=0, lt=2**63, description="Seed of the prompts, the samples and drawn pairs."
    )

    @property
    def enabled(self) -> bool:
        """Return whether the source is a generated one."""
        return bool(self.prompts or self.prompts_of)
