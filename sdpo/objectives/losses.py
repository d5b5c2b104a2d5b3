"""The formulas: pure functions of summed log-probs and token counts, each beside its source.

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

from sdpo.objectives.facts import OBJECTIVES

LARGEST_PER_TOKEN_LOGP = -1e-7
"""The odds of a completion whose tokens all have probability 1 are infinite: a is capped here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogps:
    """Summed log-probs of a batch of pairs in nats, and scored tokens; each of shape ``[pairs]``.

    The reference's are NaN for an objective that does not read them.
    """

    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    reference_chosen_logps: torch.Tensor
    reference_rejected_logps: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """h of both sides: log pi - log pi_ref, each ``[pairs]``."""
        return (
            self.policy_chosen_logps - self.reference_chosen_logps,
            self.policy_rejected_logps - self.reference_rejected_logps,
        )

    def per_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a of both sides: mean log-prob per token, each ``[pairs]``."""
        return (
            self.policy_chosen_logps / self.chosen_tokens,
            self.policy_rejected_logps / self.rejected_tokens,
        )

    def margins(self) -> torch.Tensor:
        """Delta = gamma_policy - gamma_reference, shape ``[pairs]``."""
        return (self.policy_chosen_logps - self.policy_rejected_logps) - (
            self.reference_chosen_logps - self.reference_rejected_logps
        )

    def per_token_margins(self) -> torch.Tensor:
        """h_w / n_w - h_l / n_l, shape ``[pairs]``."""
        chosen, rejected = self.log_ratios()
        return chosen / self.chosen_tokens - rejected / self.rejected_tokens


def s(z: torch.Tensor) -> torch.Tensor:
    """softplus(z) = -log sigmoid(-z), exact everywhere: ``F.softplus`` is linear above 20."""
    return -F.logsigmoid(-z)


def log1mexp(a: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(a)) for a < 0, without cancellation at either end (Maechler 2012)."""
    near = a > -math.log(2)
    # Each branch sees only arguments it can take: else its gradient is NaN where it is not chosen.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, a, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, a))),
    )


def log_odds(a: torch.Tensor) -> torch.Tensor:
    """o = a - log(1 - exp(a)), for a <= 0 capped at ``LARGEST_PER_TOKEN_LOGP``."""
    capped = a.clamp(max=LARGEST_PER_TOKEN_LOGP)
    return capped - log1mexp(capped)


def capped_odds(logps: PairLogps) -> torch.Tensor:
    """How many of each pair's sides (0, 1, 2) are so certain that :func:`log_odds` caps them."""
    chosen, rejected = logps.per_token()
    limit = LARGEST_PER_TOKEN_LOGP
    return (chosen > limit).to(chosen.dtype) + (rejected > limit).to(chosen.dtype)


def dpo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """s(-beta Delta): DPO, arXiv 2305.18290, eq. 7."""
    return s(-beta * logps.margins())


def cdpo(logps: PairLogps, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """(1 - eps) s(-beta Delta) + eps s(beta Delta): conservative DPO, Mitchell 2023.

    From "A note on DPO with noisy preferences": a label is flipped with probability eps.
    """
    z = beta * logps.margins()
    return (1 - label_smoothing) * s(-z) + label_smoothing * s(z)


def robust(logps: PairLogps, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """[(1 - eps) s(-beta Delta) - eps s(beta Delta)] / (1 - 2 eps): rDPO, arXiv 2403.00409."""
    z = beta * logps.margins()
    unbiased = (1 - label_smoothing) * s(-z) - label_smoothing * s(z)
    return unbiased / (1 - 2 * label_smoothing)


def hinge(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """max(0, 1 - beta Delta): the hinge of SLiC-HF, arXiv 2305.10425, on log-ratios."""
    return F.relu(1 - beta * logps.margins())


def ipo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """(h_w / n_w - h_l / n_l - 1 / (2 tau))^2, tau = beta: arXiv 2310.12036, eq. 17, per token.

    The average over tokens is what TRL and HALOs compute, confirmed by the paper's authors.
    """
    return (logps.per_token_margins() - 1 / (2 * beta)) ** 2


def ipo_sum(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """(Delta - 1 / (2 tau))^2, tau = beta: arXiv 2310.12036, eq. 17, as in arXiv 2502.01237."""
    return (logps.margins() - 1 / (2 * beta)) ** 2


def sppo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2: arXiv 2405.00675, eq. 4.7, P in {0, 1}."""
    chosen, rejected = logps.log_ratios()
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def exo(logps: PairLogps, *, beta: float, exo_epsilon: float) -> torch.Tensor:
    """KL((q, 1 - q) || (1 - eps, eps)), q = sigmoid(beta Delta): arXiv 2402.00856, eq. 16."""
    z = beta * logps.margins()
    chosen = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-exo_epsilon))
    return chosen + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(exo_epsilon))


def nca(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """s(-beta h_w) + s(beta h_w) / 2 + s(beta h_l) / 2: arXiv 2402.05369, K = 2."""
    chosen, rejected = (beta * h for h in logps.log_ratios())
    return s(-chosen) + 0.5 * s(chosen) + 0.5 * s(rejected)


def cal_dpo(logps: PairLogps, *, beta: float, cal_dpo_c: float) -> torch.Tensor:
    """s(-Delta) + c [(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2]: Cal-DPO, arXiv 2412.14516.

    The first term has no beta. c = 1 in arXiv 2502.01237, 1/2 in the authors' own code.
    """
    return s(-logps.margins()) + cal_dpo_c * sppo(logps, beta=beta)


def apo_zero(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """sigmoid(-beta h_w) + sigmoid(beta h_l): arXiv 2408.06266, eq. 7, plus 1 as in its code."""
    chosen, rejected = logps.log_ratios()
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """sigmoid(beta h_w) + sigmoid(-beta Delta): arXiv 2408.06266, eq. 8, plus 1 as in its code."""
    chosen, _ = logps.log_ratios()
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * logps.margins())


def hypo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """s(-beta (gamma_pi - max(gamma_ref, 0))): HyPO, arXiv 2602.11902.

    DPO, but a reference that prefers the rejected side is read as having no preference.
    """
    policy = logps.policy_chosen_logps - logps.policy_rejected_logps
    reference = logps.reference_chosen_logps - logps.reference_rejected_logps
    return s(-beta * (policy - reference.clamp(min=0)))


def dpo_norm(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """s(-beta (h_w / n_w - h_l / n_l)): length-normalised DPO, Tulu 3, arXiv 2411.15124."""
    return s(-beta * logps.per_token_margins())


def simpo(logps: PairLogps, *, beta: float, simpo_gamma_beta_ratio: float) -> torch.Tensor:
    """s(-(beta (a_w - a_l) - gamma)), gamma = beta * ratio: SimPO, arXiv 2405.14734, eq. 6."""
    chosen, rejected = logps.per_token()
    return s(-beta * (chosen - rejected - simpo_gamma_beta_ratio))


def orpo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """s(-beta (o_w - o_l)): the alignment term of ORPO under a temperature, arXiv 2502.01237."""
    chosen, rejected = (log_odds(a) for a in logps.per_token())
    return s(-beta * (chosen - rejected))


def orpo_one_stage(logps: PairLogps, *, preference_weight: float) -> torch.Tensor:
    """-a_w + lambda s(-(o_w - o_l)): ORPO, arXiv 2403.07691, eq. 6.

    The NLL is the mean over the completion's tokens; TRL takes it over the prompt as well.
    """
    return sft(logps) + preference_weight * orpo(logps, beta=1.0)


def asft(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """s(-beta o_w) + s(beta o_l): the alignment term of ASFT, arXiv 2502.01237."""
    chosen, rejected = (log_odds(a) for a in logps.per_token())
    return s(-beta * chosen) + s(beta * rejected)


def asft_one_stage(logps: PairLogps, *, preference_weight: float) -> torch.Tensor:
    """-a_w + lambda [s(-o_w) + s(o_l)]: ASFT, arXiv 2409.10571, as given in arXiv 2502.01237."""
    return sft(logps) + preference_weight * asft(logps, beta=1.0)


def sft(logps: PairLogps) -> torch.Tensor:
    """-a_w: negative log-likelihood per token of the chosen side."""
    return -logps.per_token()[0]


Loss = Callable[..., torch.Tensor]

LOSSES: dict[str, Loss] = {
    function.__name__: function
    for function in (
        *(dpo, cdpo, robust, hinge, ipo, ipo_sum, sppo, exo, nca, cal_dpo, apo_zero, apo_down),
        *(hypo, dpo_norm, simpo, orpo, orpo_one_stage, asft, asft_one_stage, sft),
    )
}
"""The formula of each objective; its keywords are the objective's ``settings``."""


def loss_at_reference(objective: str, settings: Mapping[str, float]) -> float | None:
    """The loss where policy and reference agree, if it is the same for every pair."""
    if not OBJECTIVES[objective].constant_at_reference:
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
    return LOSSES[objective](agreeing, **settings).item()


def rewards(
    logps: PairLogps, objective: str, settings: Mapping[str, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Implicit rewards of both sides, each ``[pairs]``: what TRL logs under ``rewards/``.

    beta h with a reference; without one beta a (SimPO, ORPO and ASFT), or lambda a in one stage.
    """
    if OBJECTIVES[objective].needs_reference:
        scale, (chosen, rejected) = settings["beta"], logps.log_ratios()
    else:
        scale = settings.get("beta", settings.get("preference_weight", 1.0))
        chosen, rejected = logps.per_token()
    return scale * chosen, scale * rejected


def own_metrics(
    logps: PairLogps, objective: str, *, with_nll: bool = False
) -> dict[str, torch.Tensor]:
    """What an objective has to show besides rewards and log-probs, each ``[pairs]``; TRL's names.

    ``with_nll``: the NLL of the chosen side is added to an objective that has none of its own.
    ``odds_capped`` counts the sides whose odds are capped: see :func:`log_odds`.
    """
    facts, metrics = OBJECTIVES[objective], {}
    if facts.has_nll or with_nll:
        metrics["nll_loss"] = sft(logps)
    if facts.has_odds:
        chosen, rejected = (log_odds(a) for a in logps.per_token())
        metrics["log_odds_chosen"] = chosen - rejected
        metrics["log_odds_ratio"] = F.logsigmoid(chosen - rejected)
        metrics["odds_capped"] = capped_odds(logps)
    return metrics
