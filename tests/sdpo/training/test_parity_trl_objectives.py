"""Every objective that TRL has, against its trainers: ten optimizer steps on the same batches.

TRL tokenises; the same ids go through our task and trainer, with the reference log-probs that TRL
computed. That tokens and reference are the same on our own path is shown in ``test_parity_trl``.

One pair is one micro-batch: TRL's negative log-likelihoods are means over the tokens of a
micro-batch, ours over those of a pair, and with one pair they are the same. TRL's ORPO takes that
mean over the prompt as well, so there the prompts are a single token, which nothing predicts.
TRL has no conservative DPO, Cal-DPO, ASFT, HyPO, no IPO on sums and no ORPO under a temperature.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.config import TrainingConfig
from sdpo.inputs import demo
from sdpo.inputs.demo.text import questions
from sdpo.model.batching import epoch_order
from sdpo.objectives import settings_of
from sdpo.training.tasks import PreferenceTask

from ..training_helpers.models import make_trainer, run_steps

STEPS, BATCH = 10, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*TRL.*experimental.*"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return demo.materialise("demo:tiny-llama", tmp_path_factory.mktemp("demo"))


def text_rows() -> list[dict[str, str]]:
    rows = list({row["prompt"]: row for row in questions()}.values())[: STEPS * BATCH]
    return [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows]


def training_with(objective: str, settings: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig(
        objective=objective,
        learning_rate=1e-3,
        lr_schedule="constant",
        warmup_ratio=0.0,
        batch_size=BATCH,
        **settings,
    )


def arguments(out: Path, training: TrainingConfig) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "beta": training.beta,
        "max_length": 256,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "num_train_epochs": 1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }


def fresh(make: Callable[[], Any]) -> Any:
    """What ``make`` makes, without the accelerator state of an earlier test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return make()


def ours(model: Path, rows: list[dict[str, Any]], training: TrainingConfig) -> list[dict]:
    """Metrics of ten steps on ``rows`` (ids and reference log-probs) in their order."""
    task = PreferenceTask(
        ids=[str(index) for index in range(len(rows))],
        prompts=[np.array(row["prompt_ids"], dtype=np.int32) for row in rows],
        chosen=[np.array(row["chosen_ids"], dtype=np.int32) for row in rows],
        rejected=[np.array(row["rejected_ids"], dtype=np.int32) for row in rows],
        reference=np.array([row["reference"] for row in rows], dtype=np.float32),
        objective=training.objective,
        settings=settings_of(training.model_dump()),
        rpo_alpha=training.rpo_alpha,
    )
    return run_steps(make_trainer(AutoModelForCausalLM.from_pretrained(model), training), task)


def in_our_order(rows: list[Any], seed: int) -> list[Any]:
    """Rows placed so that our shuffled epoch sees them in the order in which TRL does."""
    placed: list[Any] = [None] * len(rows)
    for position, item in enumerate(epoch_order(len(rows), seed=seed, epoch=0)):
        placed[item] = rows[position]
    return placed


def assert_same_curves(history: list[dict], log: list[dict], names: tuple[str, ...]) -> None:
    assert len(history) == len(log) == STEPS
    for name in ("loss", *names):
        mine = np.array([entry[name] for entry in history])
        theirs = np.array([entry[name] for entry in log])
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-4 * scale, err_msg=name)
    norms = [np.array([entry["grad_norm"] for entry in h]) for h in (history, log)]
    np.testing.assert_allclose(*norms, rtol=2e-2)
    moved = np.ptp([entry["logps/chosen"] for entry in history])
    assert moved > 1, "the model moves, so that the comparison means something"


LOSS_TYPES = [
    ("sigmoid", "dpo", {"beta": 0.1}, {}),
    ("robust", "robust", {"beta": 0.1, "label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    ("hinge", "hinge", {"beta": 0.1}, {}),
    ("ipo", "ipo", {"beta": 0.1}, {}),
    ("exo_pair", "exo", {"beta": 0.1, "exo_epsilon": 1e-2}, {"label_smoothing": 1e-2}),
    ("nca_pair", "nca", {"beta": 0.1}, {}),
    ("sppo_hard", "sppo", {"beta": 0.1}, {}),
    ("apo_zero", "apo_zero", {"beta": 0.1}, {}),
    ("apo_down", "apo_down", {"beta": 0.1}, {}),
    ("sigmoid_norm", "dpo_norm", {"beta": 5.0}, {}),
    ("sft", "sft", {}, {}),
    (
        ["sigmoid", "sft"],
        "dpo",
        {"beta": 0.1, "rpo_alpha": 0.5},
        {"loss_weights": [1.0, 0.5]},
    ),
]
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
LOGPS = ("logps/chosen", "logps/rejected")


@pytest.mark.parametrize(
    ("loss_type", "objective", "settings", "theirs"),
    LOSS_TYPES,
    ids=[str(t[0]) for t in LOSS_TYPES],
)
def test_ten_steps_are_those_of_trls_dpo_trainer(
    tmp_path, model, loss_type, objective, settings, theirs
):
    from trl import DPOConfig, DPOTrainer

    training = training_with(objective, settings)
    config = DPOConfig(
        **arguments(tmp_path, training),
        loss_type=loss_type,
        precompute_ref_log_probs=True,
        **theirs,
    )
    trainer = fresh(
        lambda: DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=config,
            train_dataset=Dataset.from_list(text_rows()),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
    )
    rows = [
        dict(row) | {"reference": (row["ref_chosen_logps"], row["ref_rejected_logps"])}
        for row in trainer.train_dataset
    ]
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    history = ours(model, in_our_order(rows, training.seed), training)
    names = LOGPS if objective == "sft" else LOGPS + REWARDS
    assert_same_curves(history, log, names)


def trl_without_reference(objective: str, out: Path, training: TrainingConfig, model: Path) -> Any:
    """CPOTrainer with SimPO's loss, or ORPOTrainer on prompts that are a BOS token alone."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    given = arguments(out, training) | {"remove_unused_columns": False}
    rows = text_rows()
    if objective == "simpo":
        gamma = training.beta * training.simpo_gamma_beta_ratio
        config = CPOConfig(**given, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=gamma)
        kind = CPOTrainer
    else:
        config = ORPOConfig(**given | {"beta": training.preference_weight})
        kind = ORPOTrainer
        rows = [row | {"prompt": ""} for row in rows]
    return fresh(
        lambda: kind(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
    )


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("simpo", {"beta": 2.0, "simpo_gamma_beta_ratio": 0.3}),
        ("orpo_one_stage", {"preference_weight": 0.7}),
    ],
    ids=["simpo", "orpo"],
)
def test_ten_steps_without_reference_are_those_of_trl(tmp_path, model, objective, settings):
    training = training_with(objective, settings)
    trainer = trl_without_reference(objective, tmp_path, training, model)
    rows = []
    for row in trainer.train_dataset:
        prompt = len(row["prompt_input_ids"])
        assert objective == "simpo" or prompt == 1
        sides = {f"{s}_ids": row[f"{s}_input_ids"][prompt:] for s in ("chosen", "rejected")}
        rows.append({"prompt_ids": row["prompt_input_ids"], **sides, "reference": (np.nan, np.nan)})
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    history = ours(model, in_our_order(rows, training.seed), training)
    own = () if objective == "simpo" else ("nll_loss", "log_odds_chosen", "log_odds_ratio")
    assert_same_curves(history, log, REWARDS + own)
