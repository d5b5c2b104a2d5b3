"""Tiny models and random items for the tests of training, and what HF logits say of them."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from sdpo.config import TrainingConfig
from sdpo.events import Event, EventWriter
from sdpo.identity.scoring import scoring_key
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence
from sdpo.scoring.score_rows import Scorer
from sdpo.tokens.token_file import TOKENS_SCHEMA, TokenFile, row_digest
from sdpo.training.optimizer import make_optimizer
from sdpo.training.tasks import PreferenceTask, SupervisedTask, Task
from sdpo.training.trainer import Trainer

VOCABULARY = 64
PAD = 0


def tiny_llama(*, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """Two layers of random fp32 weights, wide enough that its log-probs are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=True,
        **settings,
    )
    return LlamaForCausalLM(config)


def mixture_beside(tokenizer: Path, folder: Path) -> Path:
    """A tiny mixture of experts of random weights, with the tokenizer of another model."""
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    shutil.copy(tokenizer / "generation_config.json", folder)
    config = MixtralConfig(
        vocab_size=AutoConfig.from_pretrained(tokenizer).vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.2,
    )
    torch.manual_seed(4)
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def random_ids(rng: np.random.Generator, *, low: int = 3, high: int = 20) -> np.ndarray:
    """Ids of a prompt or completion, int32 ``[low..high]``."""
    return rng.integers(1, VOCABULARY, int(rng.integers(low, high + 1))).astype(np.int32)


def preference_task(pairs: int, *, seed: int = 0, beta: float = 0.5) -> PreferenceTask:
    """Random pairs of 6 to 40 tokens against a reference of random numbers."""
    rng = np.random.default_rng(seed)
    sides = [[random_ids(rng) for _ in range(pairs)] for _ in range(3)]
    lengths = np.array([[len(c), len(r)] for c, r in zip(sides[1], sides[2], strict=True)])
    # About the log-probs of a uniform model, ln(64) = 4.2 nats per token.
    drawn = (-4.2 * lengths + rng.normal(0, 2, (pairs, 2))).astype(np.float32)
    return PreferenceTask(
        ids=[f"pair-{index:02d}" for index in range(pairs)],
        prompts=sides[0],
        chosen=sides[1],
        rejected=sides[2],
        reference=drawn,
        objective="dpo",
        settings={"beta": beta},
    )


def supervised_task(examples: int, *, seed: int = 0) -> SupervisedTask:
    """Random prompts with completions of very different lengths."""
    rng = np.random.default_rng(seed)
    return SupervisedTask(
        ids=[f"example-{index:02d}" for index in range(examples)],
        prompts=[random_ids(rng) for _ in range(examples)],
        completions=[random_ids(rng, low=1, high=24) for _ in range(examples)],
    )


def with_reference(task: PreferenceTask, reference: np.ndarray) -> PreferenceTask:
    """The same pairs against other reference values, fp32 ``[pairs, 2]``."""
    return replace(task, reference=reference.astype(np.float32))


def accelerator(*, precision: str = "fp32") -> Any:
    """A fresh accelerator on one CPU process: its settings are global until they are reset."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True, mixed_precision="bf16" if precision == "bf16" else "no")


class ShortOfMemory(SequenceScorer):
    """A model on a device that holds ``limit`` padded tokens with their activations."""

    limit = 10**9

    def forward(self, batch):
        if torch.is_grad_enabled() and batch.input_ids.numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(batch)


def make_trainer(
    policy: Any,
    training: TrainingConfig,
    *,
    sgd: bool = False,
    precision: str = "fp32",
    lanes: int = 1,
) -> Trainer:
    """``policy`` under a trainer; with ``sgd`` an update is the gradient times the rate."""
    accelerate = accelerator(precision=precision)
    scorer = SequenceScorer(policy)
    optimizer = make_optimizer(scorer, training)
    if sgd:
        optimizer = torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad])
    prepared, optimizer = accelerate.prepare(scorer, optimizer)
    return Trainer(
        accelerator=accelerate,
        scorer=prepared,
        optimizer=optimizer,
        training=training,
        pad_token_id=PAD,
        lanes=lanes,
    )


def run_steps(trainer: Trainer, task: Task) -> list[dict[str, float]]:
    """Train, and return the metrics of every optimizer step."""
    history: list[dict[str, float]] = []
    trainer.train(task, on_step=lambda number, total, metrics: history.append(metrics))
    return history


def weights_of(policy: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights, by name."""
    return {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}


def double(policy: Any) -> Any:
    """The same model in float64."""
    return copy.deepcopy(policy).double()


def hf_logps(policy: Any, sequence: TokenSequence) -> torch.Tensor:
    """Log-prob of a completion from the model's own logits, in the model's dtype."""
    ids = torch.from_numpy(sequence.ids.astype(np.int64))[None]
    logits = policy(input_ids=ids, use_cache=False).logits[0, :-1]
    per_token_logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return per_token_logps[sequence.prompt - 1 :].sum()


def hf_pair_logps(policy: Any, task: PreferenceTask, items: np.ndarray) -> torch.Tensor:
    """Chosen and rejected log-probs from the model's own logits, ``[items, 2]``."""
    sequences = task.sequences(items)
    return torch.stack([hf_logps(policy, sequence) for sequence in sequences]).view(2, -1).T


def write_tokens(path: Path, task: PreferenceTask) -> TokenFile:
    """The pairs of ``task`` as a file of token ids."""
    sides = zip(task.prompts, task.chosen, task.rejected, strict=True)
    columns: dict[str, Any] = {
        "pair_id": list(task.ids),
        "row_digest": [row_digest(*ids) for ids in sides],
        "prompt_ids": task.prompts,
        "chosen_ids": task.chosen,
        "rejected_ids": task.rejected,
        "chosen_truncated": [False] * len(task.ids),
        "rejected_truncated": [False] * len(task.ids),
        "reason": [None] * len(task.ids),
        "detail": [None] * len(task.ids),
    }
    with pa.ipc.new_file(str(path), TOKENS_SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=TOKENS_SCHEMA))
    return TokenFile.open(path)


def cpu_key(model: str, *, layout: str) -> dict[str, str | int]:
    """The cache's key of a model that :func:`make_scorer` scores."""
    return scoring_key(
        model,
        precision="fp32",
        device="cpu",
        threads=1,
        processes=1,
        attention="sdpa",
        layout=layout,
    )


def make_scorer(
    policy: Any, *, precision: str = "fp32", layout: str = "padded", lanes: int = 1
) -> Scorer:
    """``policy`` ready to score."""
    accelerate = accelerator(precision=precision)
    return Scorer(
        accelerator=accelerate,
        module=accelerate.prepare_model(SequenceScorer(policy), evaluation_mode=True),
        pad_token_id=PAD,
        micro_batch_tokens=0,
        layout=layout,
        lanes=lanes,
    )


class RecordedEvents(EventWriter):
    """Events of a stage, kept in a list."""

    def __init__(self) -> None:
        super().__init__(None)
        self.all: list[Event] = []

    def emit(self, event: Event) -> None:
        """Keep one event."""
        self.all.append(event)
