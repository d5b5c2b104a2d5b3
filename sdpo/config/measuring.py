"""Define what is measured while a step trains, and of every model afterwards."""

from typing import Annotated

from pydantic import Field, field_validator

from sdpo.config.annotations import NO_UNIT, NotIdentity, ReadIf, SpelledOut, Unit
from sdpo.config.group import Group
from sdpo.config.judging import WinRateConfig

_OF_ITS_VIEWS = NotIdentity("intervals are computed from the measured table", of=("probe", "kl"))
_OF_PROBE = NotIdentity("KL is measured on prompts of its own", of=("kl",))
_OF_KL = NotIdentity("KL is a measurement of its own, whose identity has it", of=("probe",))
_TOLD = NotIdentity("KL's identity has it under a name of its own", of=("kl",))
_WITH_KL = ReadIf(settings=("kl_prompts",), otherwise=": probe.kl_prompts is 0")


_AFTERWARDS = NotIdentity("models are judged afterwards, by nodes that have their own identity")
_WITH_SUITES = ReadIf(settings=("suites",), otherwise=": evaluation.suites is empty")


class EvaluationConfig(Group):
    """These settings say how a step is evaluated on the reserve while it trains, and by which
    suites every model is judged afterwards."""

    every: Annotated[int, Unit("optimizer steps")] = Field(
        0,
        title="Steps between evaluations",
        ge=0,
        description="Optimizer steps between evaluations; 0: only at the end of a step.",
    )
    suites: Annotated[list[str], _AFTERWARDS] = Field(
        [],
        description="Suites and tasks of lm-evaluation-harness that judge every model M_0..M_T: "
        "`h4` (ARC-Challenge, HellaSwag, MMLU, TruthfulQA as in the paper) or any task or group by "
        "name; `name@5` for five examples in the prompt. Needs the extra `eval`.",
    )
    task_files: Annotated[str, _AFTERWARDS, _WITH_SUITES] = Field(
        "",
        description="Folder of task files of your own, whose names come before the harness's. They "
        "run code: the machine's owner has to name the folder in SDPO_TASK_FOLDERS.",
    )
    limit: Annotated[int, Unit("documents"), _AFTERWARDS, _WITH_SUITES] = Field(
        0, ge=0, description="Documents of each task, its first; 0: all."
    )
    chat_template: Annotated[bool, _AFTERWARDS, _WITH_SUITES] = Field(
        False,
        description="Put prompts into the model's chat template, examples as turns before.",
    )
    batch_size: Annotated[int, Unit("requests"), _AFTERWARDS, _WITH_SUITES] = Field(
        1,
        ge=1,
        description="Requests in a forward pass. With 1 no number depends on its neighbours.",
    )
    seed: Annotated[int, Unit(NO_UNIT), _AFTERWARDS, _WITH_SUITES] = Field(
        1234, ge=0, description="Seed by which examples in prompts are drawn."
    )
    win_rate: Annotated[WinRateConfig, _AFTERWARDS] = Field(
        WinRateConfig(), description="Win rates of every model over the one before it and over S."
    )

    @field_validator("suites")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            task, at, shots = name.partition("@")
            if not task.strip() or (at and not (shots.isascii() and shots.isdigit())):
                raise ValueError(
                    f"`{name}` is no suite or task: write `h4`, `truthfulqa_mc2` or, with five "
                    "examples in the prompt, `mmlu@5`"
                )
        if twice := {name for name in value if value.count(name) > 1}:
            raise ValueError(f"{min(twice)} stands twice")
        return value


class ProbeConfig(Group):
    """These settings say what is measured of every model M_0..M_T."""

    max_pairs: Annotated[int, Unit("pairs"), SpelledOut(of=("probe",)), _OF_PROBE] = Field(
        512, ge=1, description="Pairs of each partition on which every model is measured."
    )
    bootstrap_resamples: Annotated[int, Unit("resamples"), _OF_ITS_VIEWS] = Field(
        2000, ge=100, description="Resamples of the prompt-clustered bootstrap intervals."
    )
    completions: Annotated[int, Unit("prompts"), SpelledOut(of=("probe",)), _OF_PROBE] = Field(
        5,
        ge=0,
        description="Reserved prompts that every model completes, greedily, for the report.",
    )
    completion_tokens: Annotated[int, Unit("tokens"), SpelledOut(of=("probe",)), _OF_PROBE] = Field(
        96,
        title="Length of a completion",
        ge=1,
        description="Tokens of such a completion, at most.",
    )
    kl_prompts: Annotated[int, Unit("prompts"), _OF_KL, _TOLD] = Field(
        0,
        ge=0,
        description="Reserved prompts on which KL(M_t||M_{t-1}) and KL(M_t||S) are measured after "
        "every step; 0: not at all. Holds two models at a time, 8 bytes per parameter.",
    )
    kl_samples: Annotated[int, Unit("completions"), _OF_KL, _TOLD, _WITH_KL] = Field(
        1, ge=1, description="Completions sampled of each of these prompts."
    )
    kl_tokens: Annotated[int, Unit("tokens"), _OF_KL, _TOLD, _WITH_KL] = Field(
        256,
        title="Length of a KL completion",
        ge=1,
        description="Tokens of such a completion, at most.",
    )
    kl_paper_mode: Annotated[bool, _OF_KL, _TOLD, _WITH_KL] = Field(
        False,
        title="KL as in the paper",
        description="Measure beside it what arXiv 2502.01237 plots: temperature 0.9, top-k 40, "
        "mean log-ratio per token.",
    )
    seed: Annotated[int, Unit(NO_UNIT), SpelledOut(of=("probe", "kl"))] = Field(
        42, ge=0, description="Seed of the probe's sample, of the KL samples and of the bootstrap."
    )
