"""Compute the losses: pure functions of summed log-probs and token counts, each with its source.

Every loss takes float tensors of shape ``[pairs]`` (log-probs in nats, summed over the completion's
tokens) and returns the loss of each pair, shape ``[pairs]``.

With L the policy's log-prob of a completion, R the reference's and n its tokens: h = L - R is the
log-ratio, a = L / n the log-prob per token, o = log(P / (1 - P)) with P = exp(a) the log-odds;
w is the chosen side and l the rejected one, Delta = h_w - h_l; s(z) = softplus(z).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from sdpo.objectives.facts import OBJECTIVES, objective, objective_facts
from sdpo.plugins.installed import find

LARGEST_PER_TOKEN_LOGP = -1e-7
"""The odds are infinite where all tokens have probability 1: a is capped at this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogps:
    """A batch of pairs has summed log-probs in nats and scored tokens, each of shape ``[pairs]``.

    The reference's log-probs are NaN for an objective that does not read them.
    """

    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    reference_chosen_logps: torch.Tensor
    reference_rejected_logps: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h of both sides, log pi - log pi_ref, each ``[pairs]``."""
        return (
            self.policy_chosen_logps - self.reference_chosen_logps,
            self.policy_rejected_logps - self.reference_rejected_logps,
        )

    def per_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a of both sides, the mean log-prob per token, each ``[pairs]``."""
        return (
            self.policy_chosen_logps / self.chosen_tokens,
            self.policy_rejected_logps / self.rejected_tokens,
        )

    def margins(self) -> torch.Tensor:
        """Return Delta = gamma_policy - gamma_reference, shape ``[pairs]``."""
        return (self.policy_chosen_logps - self.policy_rejected_logps) - (
            self.reference_chosen_logps - self.reference_rejected_logps
        )

    def per_token_margins(self) -> torch.Tensor:
        """Return h_w / n_w - h_l / n_l, shape ``[pairs]``."""
        chosen, rejected = self.log_ratios()
        return chosen / self.chosen_tokens - rejected / self.rejected_tokens


def softplus(z: torch.Tensor) -> torch.Tensor:
    """Return softplus(z) = -log sigmoid(-z), exact everywhere: ``F.softplus`` is linear above 20.

    The formulas of the objectives call it s(z).
    """
    return -F.logsigmoid(-z)


def log1mexp(a: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(a)) for a < 0, without cancellation at either end (Maechler 2012)."""
    near = a > -math.log(2)
    # Each branch sees only arguments it can take: else its gradient is NaN where it is not chosen.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, a, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, a))),
    )


def log_odds(a: torch.Tensor) -> torch.Tensor:
    """Return o = a - log(1 - exp(a)), for a <= 0 capped at ``LARGEST_PER_TOKEN_LOGP``."""
    capped = a.clamp(max=LARGEST_PER_TOKEN_LOGP)
    return capped - log1mexp(capped)


def capped_odds(logps: PairLogps) -> torch.Tensor:
    """Count the sides of each pair (0, 1, 2) that are so certain that their odds are capped."""
    chosen, rejected = logps.per_token()
    limit = LARGEST_PER_TOKEN_LOGP
    return (chosen > limit).to(chosen.dtype) + (rejected > limit).to(chosen.dtype)


@objective(title="DPO", paper="2305.18290", form="pairwise", constant_at_reference=True)
def dpo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return s(-beta Delta): DPO, arXiv 2305.18290, eq. 7."""
    return softplus(-beta * logps.margins())


@objective(title="cDPO", paper="2305.18290", form="pairwise", constant_at_reference=True)
def cdpo(logps: PairLogps, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """Return (1 - eps) s(-beta Delta) + eps s(beta Delta): conservative DPO, Mitchell 2023.

    From "A note on DPO with noisy preferences": a label is flipped with probability eps.
    """
    z = beta * logps.margins()
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


@objective(title="Robust DPO", paper="2403.00409", form="pairwise", constant_at_reference=True)
def robust(logps: PairLogps, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """Return [(1 - eps) s(-beta Delta) - eps s(beta Delta)] / (1 - 2 eps): rDPO, arXiv
    2403.00409."""
    z = beta * logps.margins()
    unbiased = (1 - label_smoothing) * softplus(-z) - label_smoothing * softplus(z)
    return unbiased / (1 - 2 * label_smoothing)


@objective(title="Hinge (SLiC)", paper="2305.10425", form="pairwise", constant_at_reference=True)
def hinge(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return max(0, 1 - beta Delta): the hinge of SLiC-HF, arXiv 2305.10425, on log-ratios."""
    return F.relu(1 - beta * logps.margins())


@objective(
    title="IPO, per token",
    paper="2310.12036",
    form="pairwise",
    length_normalised=True,
    constant_at_reference=True,
)
def ipo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return (h_w / n_w - h_l / n_l - 1 / (2 tau))^2, tau = beta: arXiv 2310.12036, eq. 17, per
    token.

    The average over tokens is what TRL and HALOs compute, confirmed by the paper's authors.
    """
    return (logps.per_token_margins() - 1 / (2 * beta)) ** 2


@objective(title="IPO, summed", paper="2310.12036", form="pairwise", constant_at_reference=True)
def ipo_sum(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return (Delta - 1 / (2 tau))^2, tau = beta: arXiv 2310.12036, eq. 17, as in arXiv
    2502.01237."""
    return (logps.margins() - 1 / (2 * beta)) ** 2


@objective(title="SPPO (hard)", paper="2405.00675", form="pointwise", constant_at_reference=True)
def sppo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2: arXiv 2405.00675, eq. 4.7, P in {0,
    1}."""
    chosen, rejected = logps.log_ratios()
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


@objective(title="EXO (pairs)", paper="2402.00856", form="pairwise", constant_at_reference=True)
def exo(logps: PairLogps, *, beta: float, exo_epsilon: float) -> torch.Tensor:
    """Return KL((q, 1 - q) || (1 - eps, eps)), q = sigmoid(beta Delta): arXiv 2402.00856, eq.
    16."""
    z = beta * logps.margins()
    chosen = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-exo_epsilon))
    return chosen + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(exo_epsilon))


@objective(title="NCA (pairs)", paper="2402.05369", form="pointwise", constant_at_reference=True)
def nca(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return s(-beta h_w) + s(beta h_w) / 2 + s(beta h_l) / 2: arXiv 2402.05369, K = 2."""
    chosen, rejected = (beta * h for h in logps.log_ratios())
    return softplus(-chosen) + 0.5 * softplus(chosen) + 0.5 * softplus(rejected)


@objective(title="Cal-DPO", paper="2412.14516", form="mixed", constant_at_reference=True)
def cal_dpo(logps: PairLogps, *, beta: float, cal_dpo_c: float) -> torch.Tensor:
    """Return s(-Delta) + c [(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2]: arXiv 2412.14516.

    This is Cal-DPO. The first term has no beta. c = 1 in arXiv 2502.01237, 1/2 in the authors' own
    code.
    """
    return softplus(-logps.margins()) + cal_dpo_c * sppo(logps, beta=beta)


@objective(title="APO-Zero", paper="2408.06266", form="pointwise", constant_at_reference=True)
def apo_zero(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return sigmoid(-beta h_w) + sigmoid(beta h_l): arXiv 2408.06266, eq. 7, plus 1 as its
    code."""
    chosen, rejected = logps.log_ratios()
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


@objective(title="APO-Down", paper="2408.06266", form="mixed", constant_at_reference=True)
def apo_down(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return sigmoid(beta h_w) + sigmoid(-beta Delta): arXiv 2408.06266, eq. 8, plus 1, as its
    code."""
    chosen, _ = logps.log_ratios()
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * logps.margins())


@objective(title="HyPO", paper="2602.11902", form="pairwise")
def hypo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return s(-beta (gamma_pi - max(gamma_ref, 0))): HyPO, arXiv 2602.11902.

    DPO, but a reference that prefers the rejected side is read as having no preference.
    """
    policy = logps.policy_chosen_logps - logps.policy_rejected_logps
    reference = logps.reference_chosen_logps - logps.reference_rejected_logps
    return softplus(-beta * (policy - reference.clamp(min=0)))


@objective(
    title="DPO, length-normalised",
    paper="2411.15124",
    form="pairwise",
    length_normalised=True,
    constant_at_reference=True,
)
def dpo_norm(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return s(-beta (h_w / n_w - h_l / n_l)): length-normalised DPO, Tulu 3, arXiv 2411.15124."""
    return softplus(-beta * logps.per_token_margins())


@objective(
    title="SimPO",
    paper="2405.14734",
    form="pairwise",
    needs_reference=False,
    length_normalised=True,
)
def simpo(logps: PairLogps, *, beta: float, simpo_gamma_beta_ratio: float) -> torch.Tensor:
    """Return s(-(beta (a_w - a_l) - gamma)), gamma = beta * ratio: SimPO, arXiv 2405.14734, eq.
    6."""
    chosen, rejected = logps.per_token()
    return softplus(-beta * (chosen - rejected - simpo_gamma_beta_ratio))


@objective(
    title="ORPO, alignment term",
    paper="2502.01237",
    form="pairwise",
    needs_reference=False,
    length_normalised=True,
    has_odds=True,
)
def orpo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return s(-beta (o_w - o_l)): the alignment term of ORPO under a temperature, arXiv
    2502.01237."""
    chosen, rejected = (log_odds(a) for a in logps.per_token())
    return softplus(-beta * (chosen - rejected))


@objective(
    title="ORPO, one stage",
    paper="2403.07691",
    form="mixed",
    needs_reference=False,
    length_normalised=True,
    has_nll=True,
    has_odds=True,
)
def orpo_one_stage(logps: PairLogps, *, preference_weight: float) -> torch.Tensor:
    """Return -a_w + lambda s(-(o_w - o_l)): ORPO, arXiv 2403.07691, eq. 6.

    The NLL is the mean over the completion's tokens; TRL takes it over the prompt as well.
    """
    return sft(logps) + preference_weight * orpo(logps, beta=1.0)


@objective(
    title="ASFT, alignment term",
    paper="2502.01237",
    form="pointwise",
    needs_reference=False,
    length_normalised=True,
    has_odds=True,
)
def asft(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """Return s(-beta o_w) + s(beta o_l): the alignment term of ASFT, arXiv 2502.01237."""
    chosen, rejected = (log_odds(a) for a in logps.per_token())
    return softplus(-beta * chosen) + softplus(beta * rejected)


@objective(
    title="ASFT, one stage",
    paper="2409.10571",
    form="pointwise",
    needs_reference=False,
    length_normalised=True,
    has_nll=True,
    has_odds=True,
)
def asft_one_stage(logps: PairLogps, *, preference_weight: float) -> torch.Tensor:
    """Return -a_w + lambda [s(-o_w) + s(o_l)]: ASFT, arXiv 2409.10571, as given in arXiv
    2502.01237."""
    return sft(logps) + preference_weight * asft(logps, beta=1.0)


@objective(
    title="SFT on the chosen side",
    paper="2203.02155",
    form="supervised",
    needs_reference=False,
    length_normalised=True,
    has_nll=True,
)
def sft(logps: PairLogps) -> torch.Tensor:
    """Return -a_w: the negative log-likelihood per token of the chosen side."""
    return -logps.per_token()[0]


Loss = Callable[..., torch.Tensor]

LOSSES: dict[str, Loss] = {name: globals()[name] for name in OBJECTIVES}
"""The formula of each objective of this project; its keywords are the objective's ``settings``."""


def loss_of(objective: str) -> Loss:
    """Return the formula of an objective of this project or of a plug-in.

    Raises:
        PluginError: there is none of this name, or it cannot be imported.
    """
    if objective in LOSSES:
        return LOSSES[objective]
    objective_facts(objective)
    plugin = find("objectives", objective)
    formula: Loss = plugin.load() if plugin else LOSSES[objective]
    return formula


def loss_at_reference(objective: str, settings: Mapping[str, float]) -> float | None:
    """Return the loss where policy and reference agree, if it is the same for every pair."""
    if not objective_facts(objective).constant_at_reference:
        return None
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    agreeing = PairLogps(
        policy_chosen_logps=zero,
        policy_rejected_logps=zero,
        reference_chosen_logps=zero,
        reference_rejected_logps=zero,
        chosen_tokens=one,
        rejected_tokens=one,
    )
    return loss_of(objective)(agreeing, **settings).item()


def rewards(
    logps: PairLogps, objective: str, settings: Mapping[str, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the implicit rewards of both sides, each ``[pairs]``: TRL's ``rewards/``.

    They are beta h with a reference; without one, beta a (SimPO, ORPO, ASFT), or lambda a in one
    stage.
    """
    scale = settings.get("beta", settings.get("preference_weight", 1.0))
    if objective_facts(objective).needs_reference:
        chosen, rejected = logps.log_ratios()
    else:
        chosen, rejected = logps.per_token()
    return scale * chosen, scale * rejected


def own_metrics(
    logps: PairLogps, objective: str, *, with_nll: bool = False
) -> dict[str, torch.Tensor]:
    """Return what an objective shows besides rewards and log-probs, each ``[pairs]``; TRL's names.

    ``with_nll``: the NLL of the chosen side is added to an objective that has none of its own.
    ``odds_capped`` counts the sides whose odds are capped: see :func:`log_odds`.
    """
    facts, metrics = objective_facts(objective), {}
    if facts.has_nll or with_nll:
        metrics["nll_loss"] = sft(logps)
    if facts.has_odds:
        chosen, rejected = (log_odds(a) for a in logps.per_token())
        metrics["log_odds_chosen"] = chosen - rejected
        metrics["log_odds_ratio"] = F.logsigmoid(chosen - rejected)
        metrics["odds_capped"] = capped_odds(logps)
    return metrics
