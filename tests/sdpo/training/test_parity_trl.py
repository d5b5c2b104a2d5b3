"""The same rows in the same order through TRL's DPOTrainer: the same log-probs, the same curve."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.config import TrainingConfig
from sdpo.model.batching import epoch_order
from sdpo.system.files import read_json

from ..training_helpers.runs import prepare_run

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared"

STEPS, BATCH, MICRO_BATCH = 20, 8, 4
UNMOVED = 2
"""Steps before the first real update: every reward is 0 there, and its sign is rounding."""

# TRL's configuration speaks of gradient checkpointing by the name that transformers gives up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)


def training(**settings) -> TrainingConfig:
    defaults = {"learning_rate": 1e-3, "batch_size": BATCH, "seed": 7, "precision": "fp32"}
    return TrainingConfig(**(defaults | settings))


def rows_in_training_order(run, config: TrainingConfig) -> list[dict]:
    """Pairs of D_1 as text, in the order in which the first epoch sees them."""
    pairs = pq.read_table(run.folder.pairs).to_pylist()
    members = [pairs[row["token_row"]] for row in run.rows_of(1)]
    order = epoch_order(len(members), seed=config.seed, epoch=0)
    return [members[item] for item in order]


def trl_trainer(run, config: TrainingConfig, rows: list[dict], out: Path):
    # Importing TRL takes seconds that only these tests should pay for.
    from trl import DPOConfig, DPOTrainer

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    schedules = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    arguments = DPOConfig(
        output_dir=str(out),
        beta=config.beta,
        max_length=256,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules[config.lr_schedule],
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    sides = ("prompt", "chosen", "rejected")
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(run.model),
        args=arguments,
        train_dataset=Dataset.from_list([{side: row[side] for side in sides} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(run.model),
    )


def assert_parity(run, config: TrainingConfig, out: Path) -> None:
    rows = rows_in_training_order(run, config)
    theirs = trl_trainer(run, config, rows, out)
    run.run_step(1, config)
    assert_same_tokens(run, rows, theirs.train_dataset)
    assert_same_reference(run, rows, theirs.train_dataset)
    theirs.train()
    log = [entry for entry in theirs.state.log_history if "loss" in entry]
    ours = run.metrics(1)
    assert len(ours) == len(log) == STEPS

    def curve(history: list[dict], name: str) -> np.ndarray:
        return np.array([entry[name] for entry in history])

    losses = curve(ours, "loss")
    np.testing.assert_allclose(losses, curve(log, "loss"), rtol=0, atol=1e-4)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < 0.6, "the loss moves, so that the comparison means something"
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        np.testing.assert_allclose(curve(ours, name), curve(log, name), rtol=0, atol=1e-3)
    for name in ("logps/chosen", "logps/rejected"):
        np.testing.assert_allclose(curve(ours, name), curve(log, name), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(curve(ours, "grad_norm"), curve(log, "grad_norm"), rtol=1e-2)
    np.testing.assert_allclose(
        curve(ours, "rewards/accuracies")[UNMOVED:],
        curve(log, "rewards/accuracies")[UNMOVED:],
        atol=1e-6,
    )
    np.testing.assert_allclose(curve(ours, "epoch"), curve(log, "epoch"), rtol=1e-6)


def assert_same_tokens(run, rows: list[dict], dataset: Dataset) -> None:
    tokens = run.token_file()
    at = {pair_id: index for index, pair_id in enumerate(tokens.pair_ids)}
    for row, found in zip(rows, dataset, strict=True):
        pair = tokens.row(at[row["pair_id"]])
        assert pair.prompt_ids.tolist() == found["prompt_ids"]
        assert pair.chosen_ids.tolist() == found["chosen_ids"]
        assert pair.rejected_ids.tolist() == found["rejected_ids"]


def assert_same_reference(run, rows: list[dict], dataset: Dataset) -> None:
    """Per-sequence log-probs of every pair: |ours - TRL's| <= 1e-6 |L| + 1e-4."""
    table = pq.read_table(run.folder.step(1) / "reference.parquet").to_pylist()
    ours = {row["pair_id"]: row for row in table}
    for side in ("chosen", "rejected"):
        theirs = np.array(dataset[f"ref_{side}_logps"])
        values = np.array([ours[row["pair_id"]][f"reference_{side}_logps"] for row in rows])
        assert (np.abs(values - theirs) <= 1e-6 * np.abs(theirs) + 1e-4).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_schedule": "linear", "warmup_ratio": 0.1},
        {"lr_schedule": "cosine", "warmup_ratio": 0.0, "beta": 0.3, "weight_decay": 0.1},
    ],
    ids=["linear-warmup", "cosine-decay"],
)
def test_log_probs_and_20_steps_are_those_of_trl_on_a_random_model(tmp_path, settings):
    run = prepare_run(tmp_path, pairs={1: STEPS * BATCH})
    assert_parity(run, training(**settings), tmp_path / "trl")


@pytest.mark.slow  # 20 s
def test_log_probs_and_20_steps_are_those_of_trl_on_a_trained_model(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the folder `shared` with real models and data is not beside the project")
    lines = read_json(SHARED / "data" / "preferences" / "polite_rude.json")
    lines = [line for line in lines if line["chosen"] != line["rejected"] and not line["input"]]
    rows = [
        {"prompt": line["instruction"], "chosen": line["chosen"], "rejected": line["rejected"]}
        for line in sorted(lines, key=lambda line: len(str(line)))[: STEPS * BATCH]
    ]
    model = SHARED / "models" / "base-2m"
    run = prepare_run(tmp_path, pairs={1: STEPS * BATCH}, rows=rows, model=model)
    assert_parity(run, training(learning_rate=1e-4, beta=0.5), tmp_path / "trl")
