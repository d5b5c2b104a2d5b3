"""Try the objectives of plug-ins on numbers that stand for log-probs, as a stage."""

import torch

from sdpo.errors import PluginError
from sdpo.objectives import objective_facts, settings_of
from sdpo.objectives.losses import Loss, PairLogps, loss_of
from sdpo.processes.stage_results import TrialResult
from sdpo.processes.stage_specs import ObjectivesSpec


def run(spec: ObjectivesSpec) -> TrialResult:
    """Compute each step's objective, and its gradient, for three pairs.

    Raises:
        PluginError: it cannot be imported, fails, or gives no loss for each pair; names the step.
    """
    for step, training in spec.trainings.items():
        name, settings = training.objective, settings_of(training.model_dump())
        try:
            _try(loss_of(name), settings, has_reference=objective_facts(name).needs_reference)
        except PluginError as error:
            raise PluginError(f"step {step}: {error}") from error
        except Exception as error:
            raise PluginError(
                f"step {step}: objective `{name}` fails on log-probs of three pairs: "
                f"{type(error).__name__}: {error}"
            ) from error
    return TrialResult(steps=list(spec.trainings))


def _try(loss: Loss, settings: dict[str, float], *, has_reference: bool) -> None:
    policy = torch.tensor([[-10.0, -20.0, -30.0], [-12.0, -18.0, -30.0]], requires_grad=True)
    reference = policy.detach() - 1 if has_reference else torch.full((2, 3), torch.nan)
    tokens = torch.tensor([[5.0, 8.0, 9.0], [6.0, 7.0, 9.0]])
    made = loss(
        PairLogps(
            policy_chosen_logps=policy[0],
            policy_rejected_logps=policy[1],
            reference_chosen_logps=reference[0],
            reference_rejected_logps=reference[1],
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
        ),
        **settings,
    )
    if not isinstance(made, torch.Tensor) or made.shape != (3,):
        what = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        raise PluginError(f"the formula gives {what} where a loss of each of 3 pairs was due")
    (gradient,) = torch.autograd.grad(made.sum(), policy)
    if not made.isfinite().all() or not gradient.isfinite().all():
        raise PluginError(
            "the formula has no finite loss with a finite gradient for three plain pairs"
            + ("" if has_reference else "; its facts say that it reads no reference")
        )
