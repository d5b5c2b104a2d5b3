"""What each objective needs: a reference or not, which settings, pairs or sides, lengths, the NLL.

No torch here: recipes are checked, and steps planned, by these facts alone. The formulas are in
:mod:`sdpo.objectives.losses`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ObjectiveName = Literal[
    "dpo",
    "cdpo",
    "robust",
    "hinge",
    "ipo",
    "ipo_sum",
    "sppo",
    "exo",
    "nca",
    "cal_dpo",
    "apo_zero",
    "apo_down",
    "hypo",
    "dpo_norm",
    "simpo",
    "orpo",
    "orpo_one_stage",
    "asft",
    "asft_one_stage",
    "sft",
]

Form = Literal["pairwise", "pointwise", "mixed", "supervised"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The facts about one objective.

    ``form``: whether the loss reads the two sides through their difference alone (pairwise), each
    by itself (pointwise), both ways (mixed), or the chosen side alone (supervised). ``settings``
    are the training settings that its formula reads. ``constant_at_reference``: where policy and
    reference agree, every pair has the same loss. ``has_odds``: it reads the odds of a completion.
    """

    title: str
    paper: str
    form: Form
    settings: tuple[str, ...] = ("beta",)
    needs_reference: bool = True
    length_normalised: bool = False
    has_nll: bool = False
    has_odds: bool = False
    constant_at_reference: bool = False


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(title="DPO", paper="2305.18290", form="pairwise", constant_at_reference=True),
    "cdpo": Objective(
        title="cDPO",
        paper="2305.18290",
        form="pairwise",
        settings=("beta", "label_smoothing"),
        constant_at_reference=True,
    ),
    "robust": Objective(
        title="Robust DPO",
        paper="2403.00409",
        form="pairwise",
        settings=("beta", "label_smoothing"),
        constant_at_reference=True,
    ),
    "hinge": Objective(
        title="Hinge (SLiC)", paper="2305.10425", form="pairwise", constant_at_reference=True
    ),
    "ipo": Objective(
        title="IPO, per token",
        paper="2310.12036",
        form="pairwise",
        length_normalised=True,
        constant_at_reference=True,
    ),
    "ipo_sum": Objective(
        title="IPO, summed", paper="2310.12036", form="pairwise", constant_at_reference=True
    ),
    "sppo": Objective(
        title="SPPO (hard)", paper="2405.00675", form="pointwise", constant_at_reference=True
    ),
    "exo": Objective(
        title="EXO (pairs)",
        paper="2402.00856",
        form="pairwise",
        settings=("beta", "exo_epsilon"),
        constant_at_reference=True,
    ),
    "nca": Objective(
        title="NCA (pairs)", paper="2402.05369", form="pointwise", constant_at_reference=True
    ),
    "cal_dpo": Objective(
        title="Cal-DPO",
        paper="2412.14516",
        form="mixed",
        settings=("beta", "cal_dpo_c"),
        constant_at_reference=True,
    ),
    "apo_zero": Objective(
        title="APO-Zero", paper="2408.06266", form="pointwise", constant_at_reference=True
    ),
    "apo_down": Objective(
        title="APO-Down", paper="2408.06266", form="mixed", constant_at_reference=True
    ),
    "hypo": Objective(title="HyPO", paper="2602.11902", form="pairwise"),
    "dpo_norm": Objective(
        title="DPO, length-normalised",
        paper="2411.15124",
        form="pairwise",
        length_normalised=True,
        constant_at_reference=True,
    ),
    "simpo": Objective(
        title="SimPO",
        paper="2405.14734",
        form="pairwise",
        settings=("beta", "simpo_gamma_beta_ratio"),
        needs_reference=False,
        length_normalised=True,
    ),
    "orpo": Objective(
        title="ORPO, alignment term",
        paper="2502.01237",
        form="pairwise",
        needs_reference=False,
        length_normalised=True,
        has_odds=True,
    ),
    "orpo_one_stage": Objective(
        title="ORPO, one stage",
        paper="2403.07691",
        form="mixed",
        settings=("preference_weight",),
        needs_reference=False,
        length_normalised=True,
        has_nll=True,
        has_odds=True,
    ),
    "asft": Objective(
        title="ASFT, alignment term",
        paper="2502.01237",
        form="pointwise",
        needs_reference=False,
        length_normalised=True,
        has_odds=True,
    ),
    "asft_one_stage": Objective(
        title="ASFT, one stage",
        paper="2409.10571",
        form="pointwise",
        settings=("preference_weight",),
        needs_reference=False,
        length_normalised=True,
        has_nll=True,
        has_odds=True,
    ),
    "sft": Objective(
        title="SFT on the chosen side",
        paper="2203.02155",
        form="supervised",
        settings=(),
        needs_reference=False,
        length_normalised=True,
        has_nll=True,
    ),
}

_OTHER_NAMES = {
    "sigmoid": "dpo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "sppo_hard": "sppo",
    "sigmoid_norm": "dpo_norm",
    "slic": "hinge",
    "ipo_avg": "ipo",
}
"""Names under which TRL and others have an objective that is here."""


def other_name(name: str) -> str:
    """This project's name of an objective that others call ``name``, or ""."""
    return _OTHER_NAMES.get(name, "")


def settings_of(training: Mapping[str, Any]) -> dict[str, float]:
    """Of ``training`` the settings that its objective's formula reads."""
    return {name: training[name] for name in OBJECTIVES[training["objective"]].settings}
