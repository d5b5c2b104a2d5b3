"""A mixture of experts trains by the objective and its routers' load-balancing loss, as in TRL."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, Qwen2MoeConfig

from sdpo.config import TrainingConfig
from sdpo.inputs import demo
from sdpo.inputs.demo.text import questions
from sdpo.model.batching import epoch_order
from sdpo.model.policy import add_adapters
from sdpo.training.tasks import PreferenceTask

from ..training_helpers.models import (
    VOCABULARY,
    double,
    hf_pair_logps,
    make_trainer,
    preference_task,
    run_steps,
    weights_of,
)

STEPS, BATCH, WEIGHT = 6, 4, 0.3

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}
KINDS = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, router_aux_loss_coef=WEIGHT),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES,
        num_experts=4,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        router_aux_loss_coef=WEIGHT,
    ),
}


def mixture(kind: str, vocabulary: int):
    torch.manual_seed(1)
    config = type(KINDS[kind]).from_dict(KINDS[kind].to_dict() | {"vocab_size": vocabulary})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def one_step(**settings) -> TrainingConfig:
    rates = {"learning_rate": 1.0, "lr_schedule": "constant", "warmup_ratio": 0.0}
    return TrainingConfig(**rates, max_grad_norm=0, precision="fp32", **settings)


def with_router_loss(task: PreferenceTask, weight: float = WEIGHT) -> PreferenceTask:
    return replace(task, router_aux_loss=weight)


def exact_model(policy):
    """The same in float64, which grouped kernels of experts do not take."""
    exact = double(policy)
    exact.set_experts_implementation("eager")
    return exact


def objective_of(policy, task: PreferenceTask) -> torch.Tensor:
    """The mean loss of DPO, of the model's own logits."""
    logps = hf_pair_logps(policy, task, np.arange(len(task.ids)))
    margin = logps - torch.from_numpy(task.reference).double()
    return -torch.nn.functional.logsigmoid(0.5 * (margin[:, 0] - margin[:, 1])).mean()


def exact_router_loss(policy, task: PreferenceTask) -> torch.Tensor:
    """In float64, of the routers' logits of every sequence alone."""
    logits = []
    for sequence in task.sequences(np.arange(len(task.ids))):
        ids = torch.from_numpy(sequence.ids.astype(np.int64))[None]
        found = policy(input_ids=ids, use_cache=False, output_router_logits=True).router_logits
        logits += [each.flatten(0, -2) for each in found]
    together = torch.cat(logits).double()
    used = torch.zeros_like(together).scatter(1, together.topk(2, -1).indices, 1.0).mean(0)
    return together.shape[1] * (used * together.softmax(-1).mean(0)).sum()


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("budget", [1, 150, 1_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_however_a_global_batch_is_cut_its_router_loss_is_of_all_its_tokens(kind, budget, lanes):
    policy, task = mixture(kind, VOCABULARY), with_router_loss(preference_task(7))
    before, exact = weights_of(policy), exact_model(policy)
    objective = objective_of(exact, task)
    aux_loss = exact_router_loss(exact, task)
    (objective + WEIGHT * aux_loss).backward()
    training = one_step(batch_size=8, micro_batch_tokens=budget)
    (metrics,) = run_steps(make_trainer(policy, training, sgd=True, lanes=lanes), task)
    assert metrics["aux_loss"] == pytest.approx(aux_loss.item(), rel=1e-5)
    total = objective.item() + WEIGHT * aux_loss.item()
    assert metrics["loss"] == pytest.approx(total, rel=1e-5)
    for name, parameter in exact.named_parameters():
        moved = before[name] - policy.get_parameter(name).detach()
        torch.testing.assert_close(
            moved.double(), parameter.grad, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("budget", [1, 1_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_that_are_computed_again_change_neither_the_loss_nor_what_is_learned(
    kind, budget
):
    found = []
    for recomputed in (False, True):
        policy, task = mixture(kind, VOCABULARY), with_router_loss(preference_task(5))
        if recomputed:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        training = one_step(batch_size=8, micro_batch_tokens=budget)
        (metrics,) = run_steps(make_trainer(policy, training, sgd=True), task)
        metrics = {name: metrics[name] for name in ("loss", "aux_loss", "grad_norm")}
        found.append((metrics, weights_of(policy)))
    (metrics, weights), (again, weights_again) = found
    assert again == pytest.approx(metrics, rel=1e-5)
    torch.testing.assert_close(weights_again, weights, rtol=1e-4, atol=1e-5)


def adapted(kind: str, **settings):
    """A mixture with adapters as if they had been trained: on all projections, and on the routers
    where PEFT takes them for one."""
    lora = TrainingConfig(lora_r=2, lora_alpha=4, **settings)
    policy = add_adapters(mixture(kind, VOCABULARY), lora)
    torch.manual_seed(2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("budget", [1, 1_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_from_the_router_loss_of_the_model_that_they_make(kind, budget, recomputed):
    policy, task = adapted(kind), with_router_loss(preference_task(5))
    exact = exact_model(policy)
    objective = objective_of(exact, task)
    aux_loss = exact_router_loss(exact, task)
    merged = exact_model(policy).merge_and_unload()
    assert aux_loss.item() == pytest.approx(exact_router_loss(merged, task).item(), rel=1e-9)
    (objective + WEIGHT * aux_loss).backward()
    if recomputed:
        policy.enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    training = one_step(batch_size=8, micro_batch_tokens=budget)
    (metrics,) = run_steps(make_trainer(policy, training, sgd=True), task)
    assert metrics["aux_loss"] == pytest.approx(aux_loss.item(), rel=1e-5)
    of_routers = torch.autograd.grad(
        exact_router_loss(exact, task),
        [exact.get_parameter(name) for name in trained],
        allow_unused=True,
    )
    assert max(float(g.abs().max()) for g in of_routers if g is not None) > 1e-3
    for name, parameter in trained.items():
        moved = (before[name] - parameter.detach()).double()
        expected = exact.get_parameter(name).grad
        assert expected is not None, name
        torch.testing.assert_close(
            moved, expected, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_adapters_that_drop_out_draw_the_same_for_the_load_and_for_the_loss():
    """The load of the whole batch is of a forward before: with other draws its gradients would be
    those of no loss. Two micro-batches are compared with the sum that is made of them by hand."""
    settings = {"lora_dropout": 0.3, "lora_target_modules": ["q_proj", "v_proj", "o_proj"]}
    policy, task = adapted("mixtral", **settings), with_router_loss(preference_task(4))
    training = one_step(batch_size=4, micro_batch_tokens=60)
    trainer = make_trainer(policy, training, sgd=True)
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    batch = epoch_order(4, seed=training.seed, epoch=0)
    cut = trainer.cut(batch, trainer.costs(task), step=0)
    assert len(cut) > 1
    trainer.scorer.train()
    torch.manual_seed(9)
    losses = [trainer.losses(task, items) for items in cut]
    together = torch.stack([found.load for found in losses]).sum(0)
    chosen, probabilities = together[0].detach(), together[1]
    tokens = probabilities.sum().detach()
    aux_loss = 4 * (chosen / tokens * probabilities / tokens).sum()
    objective = torch.cat([found.loss for found in losses]).mean()
    expected = torch.autograd.grad(objective + WEIGHT * aux_loss, list(trained.values()))
    torch.manual_seed(9)
    (metrics,) = run_steps(trainer, task)
    assert metrics["aux_loss"] == pytest.approx(aux_loss.item(), rel=1e-6)
    for (name, parameter), gradient in zip(trained.items(), expected, strict=True):
        torch.testing.assert_close(
            before[name] - parameter.detach(), gradient, rtol=1e-3, atol=2e-5, msg=name
        )


def test_a_loss_that_is_not_asked_for_is_neither_added_nor_told():
    (metrics,) = run_steps(
        make_trainer(mixture("mixtral", VOCABULARY), one_step()), preference_task(4)
    )
    assert "aux_loss" not in metrics


def test_the_reserve_is_measured_with_the_same_loss():
    policy, task = mixture("mixtral", VOCABULARY), with_router_loss(preference_task(5))
    trainer = make_trainer(policy, one_step(micro_batch_tokens=60))
    measured = trainer.evaluate(task)
    aux_loss = exact_router_loss(exact_model(policy), task).item()
    plain = trainer.evaluate(with_router_loss(task, 0.0))["loss"]
    assert measured["aux_loss"] == pytest.approx(aux_loss, rel=1e-5)
    assert measured["loss"] == pytest.approx(plain + WEIGHT * aux_loss, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_those_of_trl_whose_micro_batch_is_the_whole_batch(kind, tmp_path):
    from trl import DPOConfig, DPOTrainer

    llama = demo.materialise("demo:tiny-llama", tmp_path / "demo")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    rows = list({row["prompt"]: row for row in questions()}.values())[: STEPS * BATCH]
    rows = [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows]
    mixture(kind, len(tokenizer)).save_pretrained(tmp_path / "model")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    theirs = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            beta=0.1,
            max_length=256,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert theirs.router_aux_loss_coef == WEIGHT, "by the model's configuration alone"
    seen = list(theirs.train_dataset)
    theirs.train()
    log = [entry for entry in theirs.state.log_history if "loss" in entry]

    training = TrainingConfig(
        learning_rate=1e-3,
        lr_schedule="constant",
        warmup_ratio=0.0,
        batch_size=BATCH,
        micro_batch_tokens=100,
        precision="fp32",
    )
    placed = [None] * len(seen)
    for position, item in enumerate(epoch_order(len(seen), seed=training.seed, epoch=0)):
        placed[item] = seen[position]
    sides = {
        side: [np.array(row[f"{side}_ids"], dtype=np.int32) for row in placed]
        for side in ("prompt", "chosen", "rejected")
    }
    reference = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in placed]
    task = PreferenceTask(
        ids=[str(index) for index in range(len(placed))],
        prompts=sides["prompt"],
        chosen=sides["chosen"],
        rejected=sides["rejected"],
        reference=np.array(reference, dtype=np.float32),
        objective="dpo",
        settings={"beta": 0.1},
        router_aux_loss=WEIGHT,
    )
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ours = run_steps(make_trainer(policy, training), task)
    assert len(ours) == len(log) == STEPS
    for name in ("aux_loss", "loss", "rewards/margins", "logps/chosen", "grad_norm"):
        mine, their = (np.array([entry[name] for entry in history]) for history in (ours, log))
        tolerance = 2e-2 if name == "grad_norm" else 2e-4
        np.testing.assert_allclose(
            mine, their, rtol=tolerance, atol=2e-4 * np.abs(their).max(), err_msg=name
        )
    assert np.ptp([entry["aux_loss"] for entry in ours]) > 0.01, "the routers move"
