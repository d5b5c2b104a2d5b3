"""Define what is measured while a step trains, and of every model afterwards."""

from typing import Annotated

from pydantic import Field

from sdpo.config.annotations import NO_UNIT, NotIdentity, ReadIf, SpelledOut, Unit
from sdpo.config.group import Group

_OF_ITS_VIEWS = NotIdentity("intervals are computed from the measured table", of=("probe", "kl"))
_OF_PROBE = NotIdentity("KL is measured on prompts of its own", of=("kl",))
_OF_KL = NotIdentity("KL is a measurement of its own, whose identity has it", of=("probe",))
_TOLD = NotIdentity("KL's identity has it under a name of its own", of=("kl",))
_WITH_KL = ReadIf(settings=("kl_prompts",), otherwise=": probe.kl_prompts is 0")


class EvaluationConfig(Group):
    """These settings say how a step is evaluated on the reserve while it trains."""

    every: Annotated[int, Unit("optimizer steps")] = Field(
        0,
        title="Steps between evaluations",
        ge=0,
        description="Optimizer steps between evaluations; 0: only at the end of a step.",
    )


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
