import copy
import math
from dataclasses import fields, replace
from itertools import groupby

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import get_scheduler

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.errors import DivergedError
from sdpo.model.policy import add_adapters, load_policy, merge_adapters
from sdpo.objectives.losses import PairLogps, dpo
from sdpo.training.optimizer import learning_rate, make_optimizer
from sdpo.training.tasks import PreferenceTask
from sdpo.training.trainer import Trainer

from ..training_helpers.models import (
    double,
    hf_logps,
    hf_pair_logps,
    make_trainer,
    preference_task,
    run_steps,
    supervised_task,
    tiny_llama,
    weights_of,
    with_reference,
)

# Newer releases of transformers rename it; peft and the oldest one allowed here have the old name.
old_checkpointing_name = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

BUDGETS = [1, 150, 1_000_000]
"""Micro-batches of one pair, of a few, and of the whole global batch."""

HF_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine_with_min_lr",
    "constant": "constant_with_warmup",
}


def one_step(**settings) -> TrainingConfig:
    """A single update at a constant rate of 1, so that with SGD the update is the gradient."""
    defaults = {"learning_rate": 1.0, "lr_schedule": "constant", "warmup_ratio": 0.0}
    return TrainingConfig(**(defaults | {"max_grad_norm": 0, "precision": "fp32"} | settings))


@pytest.mark.parametrize("schedule", sorted(HF_SCHEDULES))
@pytest.mark.parametrize(
    ("total", "warmup"),
    [
        (1, {"warmup_ratio": 0.1}),
        (7, {"warmup_ratio": 0.0}),
        (20, {"warmup_ratio": 0.1}),
        (33, {"warmup_ratio": 0.25}),
        (20, {"warmup_steps": 3}),
        (4, {"warmup_steps": 6}),
    ],
)
def test_the_learning_rate_is_that_of_transformers_at_every_step(schedule, total, warmup):
    training = TrainingConfig(learning_rate=3e-4, lr_schedule=schedule, min_lr_rate=0.3, **warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(
        HF_SCHEDULES[schedule],
        optimizer,
        num_warmup_steps=warmup.get("warmup_steps") or math.ceil(warmup["warmup_ratio"] * total),
        num_training_steps=total,
        scheduler_specific_kwargs={"min_lr_rate": 0.3} if "min_lr" in schedule else None,
    )
    for step in range(total):
        expected = scheduler.get_last_lr()[0]
        assert learning_rate(step, total=total, training=training) == pytest.approx(
            expected, rel=1e-12, abs=1e-18
        )
        optimizer.step()
        scheduler.step()


def test_weight_decay_is_not_applied_to_vectors():
    policy = tiny_llama(attention_bias=True)
    training = TrainingConfig(weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    optimizer = make_optimizer(policy, training)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim == 2 for p in decayed["params"])
    vectors = [p for name, p in policy.named_parameters() if "norm" in name or "bias" in name]
    assert {id(p) for p in plain["params"]} == {id(p) for p in vectors}
    grouped = [*decayed["params"], *plain["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, policy.parameters()))
    assert decayed["betas"] == (0.8, 0.95)
    assert decayed["eps"] == 1e-6


@old_checkpointing_name
def test_parameters_that_do_not_train_are_not_in_the_optimizer():
    policy = add_adapters(tiny_llama(), TrainingConfig(lora_r=2))
    groups = make_optimizer(policy, TrainingConfig()).param_groups
    chosen = {id(p) for group in groups for p in group["params"]}
    assert chosen == {id(p) for name, p in policy.named_parameters() if "lora_" in name}


def test_rmsprop_takes_the_step_that_its_formula_says():
    layer = torch.nn.Linear(3, 1, bias=False)
    training = TrainingConfig(optimizer="rmsprop", learning_rate=0.01, adam_epsilon=1e-3)
    optimizer = make_optimizer(layer, training)
    before, gradient = layer.weight.detach().clone(), torch.tensor([[0.5, -2.0, 0.0]])
    layer.weight.grad = gradient.clone()
    optimizer.step()
    average = 0.01 * gradient**2  # alpha = 0.99, from zero
    expected = before - 0.01 * gradient / (average.sqrt() + 1e-3)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_adamw_in_8_bits_is_adamw_but_for_the_rounding_of_its_moments():
    pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    torch.manual_seed(0)
    start = torch.nn.Linear(96, 64)
    target = torch.randn(64, 96)
    moved: dict[str, torch.Tensor] = {}
    for name in ("adamw", "adamw_8bit"):
        layer = copy.deepcopy(start)
        training = TrainingConfig(optimizer=name, learning_rate=0.01, weight_decay=0.1)
        optimizer = make_optimizer(layer, training)
        for _ in range(20):
            optimizer.zero_grad()
            ((layer.weight - target) ** 2).sum().backward()
            optimizer.step()
        moved[name] = (layer.weight - start.weight).detach()
        decays = {g["weight_decay"]: len(g["params"]) for g in optimizer.param_groups}
        assert decays == {0.1: 1, 0.0: 1}
    moments = optimizer.state[layer.weight]
    assert (moments["state1"].dtype, moments["state2"].dtype) == (torch.uint8, torch.uint8)
    difference = (moved["adamw_8bit"] - moved["adamw"]).norm() / moved["adamw"].norm()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("pairs", [7, 1])
def test_metrics_and_gradient_are_those_of_the_models_own_logits_in_float64(budget, pairs, lanes):
    """One global batch, smaller than the batch size, however it is cut."""
    policy, task = tiny_llama(), preference_task(pairs)
    before, exact = weights_of(policy), double(policy)
    items = np.arange(pairs)
    reference = torch.from_numpy(task.reference).double()
    policy_logps = hf_pair_logps(exact, task, items)
    logps = PairLogps(
        policy_chosen_logps=policy_logps[:, 0],
        policy_rejected_logps=policy_logps[:, 1],
        reference_chosen_logps=reference[:, 0],
        reference_rejected_logps=reference[:, 1],
        chosen_tokens=torch.ones(pairs),
        rejected_tokens=torch.ones(pairs),
    )
    loss = dpo(logps, **task.settings).mean()
    loss.backward()
    policy_logps = policy_logps.detach()
    rewards = task.settings["beta"] * (policy_logps - reference)
    gradients = {name: p.grad for name, p in exact.named_parameters()}
    expected = {
        "loss": loss.item(),
        "rewards/chosen": float(rewards[:, 0].mean()),
        "rewards/rejected": float(rewards[:, 1].mean()),
        "rewards/margins": float((rewards[:, 0] - rewards[:, 1]).mean()),
        "rewards/accuracies": float((rewards[:, 0] > rewards[:, 1]).double().mean()),
        "logps/chosen": float(policy_logps[:, 0].mean()),
        "logps/rejected": float(policy_logps[:, 1].mean()),
        "grad_norm": math.sqrt(sum(float((g**2).sum()) for g in gradients.values())),
        "learning_rate": 1.0,
        "epoch": 1.0,
    }

    training = one_step(batch_size=8, micro_batch_tokens=budget)
    (metrics,) = run_steps(make_trainer(policy, training, sgd=True, lanes=lanes), task)

    assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for name, after in policy.named_parameters():
        step = (before[name] - after.detach()).double()
        torch.testing.assert_close(step, gradients[name], rtol=1e-3, atol=2e-5, msg=name)


def test_the_loss_curve_does_not_depend_on_the_token_budget():
    curves = []
    for budget in BUDGETS:
        training = TrainingConfig(
            learning_rate=1e-3, batch_size=4, epochs=2, micro_batch_tokens=budget
        )
        trainer = make_trainer(tiny_llama(), training)
        curves.append([m["loss"] for m in run_steps(trainer, preference_task(10))])
    assert len(curves[0]) == 6, "two epochs of batches of 4, 4 and 2"
    assert max(curves[0]) - min(curves[0]) > 0.05, "the model learns something"
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-4)


class Waits(TorchDispatchMode):
    """Writes "waits" into ``log`` where a processor would have to wait for its device: a number is
    asked of it, or how many of something there are."""

    ASKED = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if by_mask or func.overloadpacket.__name__.startswith(self.ASKED):
            self.log.append("waits")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_the_next_micro_batch_is_laid_out_while_a_device_computes_the_one_before(
    layout, monkeypatch
):
    """So it needs no thread of its own that prepares it. Where transformers makes a mask it waits,
    but then the micro-batch is there, and its layers come after that."""
    policy, log = tiny_llama(), []
    policy.model.layers[0].register_forward_pre_hook(lambda *_: log.append("layers"))
    laid_out = Trainer._batch

    def batch(self, task, items):
        done = laid_out(self, task, items)
        log.append("laid out")
        return done

    monkeypatch.setattr(Trainer, "_batch", batch)
    trainer = make_trainer(policy, one_step(batch_size=10, micro_batch_tokens=60))
    with Waits(log):
        run_steps(replace(trainer, layout=layout), preference_task(10))
    order = [what for what, _ in groupby(log)]
    last = len(order) - 1 - order[::-1].index("layers")
    after = [order[at + 1] for at, what in enumerate(order[:last]) if what == "layers"]
    assert len(after) > 3
    assert set(after) == {"laid out"}
    assert order[last + 1] == "waits", "the loss is asked for once, of all of them"


def test_every_pair_is_trained_on_once_per_epoch():
    seen: list[int] = []

    class Watched(PreferenceTask):
        def losses(self, logps, items):
            seen.extend(items.tolist())
            return super().losses(logps, items)

    task = preference_task(10)
    watched = Watched(**{field.name: getattr(task, field.name) for field in fields(task)})
    run_steps(make_trainer(tiny_llama(), TrainingConfig(batch_size=4, epochs=2)), watched)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:], "another order in the second epoch"


def test_max_steps_ends_the_training():
    trainer = make_trainer(tiny_llama(), TrainingConfig(batch_size=2, max_steps=3))
    assert len(run_steps(trainer, preference_task(10))) == 3


def test_clipping_bounds_the_update_and_reports_the_norm_before_it():
    task, free, clipped = preference_task(4), tiny_llama(), tiny_llama()
    start = weights_of(free)
    (unbounded,) = run_steps(make_trainer(free, one_step(), sgd=True), task)
    (bounded,) = run_steps(make_trainer(clipped, one_step(max_grad_norm=0.25), sgd=True), task)
    assert bounded["grad_norm"] == pytest.approx(unbounded["grad_norm"], rel=1e-6)
    assert unbounded["grad_norm"] > 0.25
    moved = [(start[name] - p.detach()) for name, p in clipped.named_parameters()]
    assert float(torch.stack([(m**2).sum() for m in moved]).sum().sqrt()) == pytest.approx(
        0.25, rel=1e-4
    )


def test_a_loss_that_is_not_a_number_stops_the_step_and_names_the_pairs():
    task = preference_task(6)
    poisoned = task.reference.copy()
    poisoned[3, 1] = np.nan
    policy = tiny_llama()
    before = weights_of(policy)
    trainer = make_trainer(policy, one_step(batch_size=6, micro_batch_tokens=1))
    with pytest.raises(DivergedError, match="the loss is nan") as error:
        run_steps(trainer, with_reference(task, poisoned))
    assert all(pair_id in str(error.value) for pair_id in task.ids)
    assert_same_weights(policy, before)


def test_only_the_batch_that_diverged_is_named_and_earlier_updates_stand():
    task = preference_task(6)
    policy = tiny_llama()
    trainer = make_trainer(policy, one_step(batch_size=3, learning_rate=1e-3))
    after_first = {}

    def poison(number, total, metrics):
        after_first.update(weights_of(policy))
        task.reference[:] = np.inf

    with pytest.raises(DivergedError) as error:
        trainer.train(task, on_step=poison)
    named = [pair_id for pair_id in task.ids if pair_id in str(error.value)]
    assert len(named) == 3
    assert_same_weights(policy, after_first)
    assert not torch.equal(
        after_first["model.embed_tokens.weight"], tiny_llama().model.embed_tokens.weight
    )


def test_a_weight_that_is_not_a_number_stops_the_first_step():
    policy = tiny_llama()
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    before = weights_of(policy)
    with pytest.raises(DivergedError, match="pair-00"):
        run_steps(make_trainer(policy, one_step(batch_size=2)), preference_task(2))
    assert_same_weights(policy, before)


@pytest.mark.parametrize("budget", [1, 1_000_000])
def test_a_gradient_that_is_not_a_number_makes_no_update(budget):
    """As an overflow in the backward pass gives it: the loss itself is fine."""
    policy = tiny_llama()
    before = weights_of(policy)
    policy.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    trainer = make_trainer(policy, one_step(batch_size=2, micro_batch_tokens=budget))
    with pytest.raises(DivergedError, match=r"gradient norm is nan.*pair-0"):
        run_steps(trainer, preference_task(2))
    assert_same_weights(policy, before)


@pytest.mark.parametrize("budget", BUDGETS)
def test_evaluation_counts_every_pair_once_and_changes_nothing(budget):
    policy, task = tiny_llama(), preference_task(7)
    before = weights_of(policy)
    exact = hf_pair_logps(double(policy), task, np.arange(7)).detach().numpy()
    trainer = make_trainer(policy, TrainingConfig(batch_size=3, micro_batch_tokens=budget))
    rewards = task.settings["beta"] * (exact - task.reference)
    margins = rewards[:, 0] - rewards[:, 1]

    metrics = trainer.evaluate(task)

    assert metrics["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(margins.mean(), rel=1e-4)
    assert metrics["rewards/accuracies"] == pytest.approx((margins > 0).mean())
    assert_same_weights(policy, before)
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_supervised_loss_is_the_token_mean_of_the_global_batch(budget):
    policy, task = tiny_llama(), supervised_task(6)
    before, exact = weights_of(policy), double(policy)
    logps = torch.stack([hf_logps(exact, s) for s in task.sequences(np.arange(6))])
    loss = -logps.sum() / sum(len(completion) for completion in task.completions)
    loss.backward()

    training = one_step(batch_size=6, micro_batch_tokens=budget)
    (metrics,) = run_steps(make_trainer(policy, training, sgd=True), task)

    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "epoch"}
    for name, parameter in exact.named_parameters():
        step = (before[name] - policy.get_parameter(name).detach()).double()
        torch.testing.assert_close(step, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


@old_checkpointing_name
def test_gradient_checkpointing_recomputes_and_gives_the_same_losses(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    histories, forwards = [], []
    for recomputed in (None, "blocks", "selective"):
        policy = load_policy(tmp_path, model=ModelConfig(), recomputed=recomputed)
        calls = []
        policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        training = TrainingConfig(learning_rate=1e-3, batch_size=3)
        histories.append(run_steps(make_trainer(policy, training), preference_task(9)))
        forwards.append(len(calls))
    assert histories[0] == histories[1] == histories[2]
    assert forwards == [3, 6, 6]


@old_checkpointing_name
def test_lora_trains_its_adapters_only_and_merges_to_the_same_model():
    policy, task = tiny_llama(), preference_task(8)
    base = weights_of(policy)
    training = TrainingConfig(lora_r=4, lora_alpha=8, learning_rate=1e-2, batch_size=4, epochs=2)
    torch.manual_seed(training.seed)
    adapted = add_adapters(policy, training)
    untouched = {name: t for name, t in weights_of(adapted).items() if "lora_" not in name}
    assert len(untouched) == len(base)
    trainer = make_trainer(adapted, training)
    start = trainer.evaluate(task)["loss"]
    run_steps(trainer, task)

    after = weights_of(adapted)
    for name, tensor in untouched.items():
        assert torch.equal(after[name], tensor), name
    assert trainer.evaluate(task)["loss"] < start - 0.05
    adapted.eval()
    with torch.no_grad():
        logps = hf_pair_logps(adapted, task, np.arange(8))
        merged = merge_adapters(adapted)
        again = hf_pair_logps(merged, task, np.arange(8))
    torch.testing.assert_close(again, logps, rtol=1e-6, atol=1e-4)
    assert set(merged.state_dict()) == set(base), "no trace of the adapters"
    assert all(tensor.dtype == torch.float32 for tensor in merged.state_dict().values())
    assert any(not torch.equal(tensor, base[name]) for name, tensor in weights_of(merged).items())


def assert_same_weights(policy, before):
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(
            tensor, before[name], rtol=0, atol=0, equal_nan=True, msg=f"{name} was changed"
        )
