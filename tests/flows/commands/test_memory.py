"""The memory that `sdpo check` estimates is the memory that a training takes."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flows.commands.memory import estimate_memory
from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.model.fused_ops import fuse
from sdpo.model.held import hold_base
from sdpo.model.last_block import prune
from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.model.recomputation import recompute
from sdpo.model.sequence_scorer import SequenceScorer

HIDDEN, LAYERS, VOCABULARY = 128, 8, 64


def llama(inner: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=inner,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def batch():
    rng = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(0, VOCABULARY, count).astype(np.int32)

    groups = [PromptGroup(tokens(40), (tokens(60), tokens(60))) for _ in range(4)]
    return LAYOUTS["shared"].collate(groups, pad_token_id=0, device="cpu")


def kept_bytes(model: LlamaForCausalLM, *, low: bool) -> tuple[int, int]:
    """Bytes that a forward keeps for its backward: casts of weights, and everything else."""
    scorer = SequenceScorer(model).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(sorted(p.shape)) for p in model.parameters()}
    seen: dict[int, tuple[int, bool]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        cast = tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), cast)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low),
    ):
        logps = scorer(batch())
    assert logps.requires_grad
    return (
        sum(size for size, cast in seen.values() if cast),
        sum(size for size, cast in seen.values() if not cast),
    )


@pytest.mark.parametrize("inner", [128, 448])
@pytest.mark.parametrize(
    ("precision", "device"), [("bf16", "cuda"), ("fp32", "cuda"), ("fp32", "cpu")]
)
def test_activations_and_copies_are_those_that_autograd_keeps(precision, device, inner):
    model = llama(inner)
    if device == "cpu":
        fuse(model)
    prune(model)
    copies, kept = kept_bytes(model, low=precision == "bf16")
    tokens = batch().input_ids.numel()
    estimate = estimate_memory(
        model.config.to_dict(),
        parameters=sum(p.numel() for p in model.parameters()),
        training=TrainingConfig(precision=precision, micro_batch_tokens=tokens),
        launch=LaunchConfig(device=device, processes=1, strategy="single", threads=1),
    )
    assert estimate.activations_bytes == pytest.approx(kept, rel=0.12)
    assert estimate.copies_bytes == pytest.approx(copies, rel=0.05, abs=1)


def test_full_training_in_bf16_takes_18_bytes_a_parameter():
    estimate = estimate_memory(
        llama(448).config.to_dict(),
        parameters=1_000_000,
        training=TrainingConfig(precision="bf16"),
        launch=LaunchConfig(device="cuda", processes=1, strategy="single", threads=1),
    )
    without = estimate.total_bytes - (estimate.activations_bytes or 0) - estimate.head_bytes
    assert without == 18_000_000


def test_a_base_in_another_precision_takes_what_its_parameters_take():
    model = llama(448)
    held = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    estimate = estimate_memory(
        model.config.to_dict(),
        parameters=sum(p.numel() for p in model.parameters()),
        training=TrainingConfig(lora_r=4, lora_handoff="continue"),
        launch=LaunchConfig(device="cuda", processes=1, strategy="single", threads=1),
        held=held,
        base_precision="bf16",
    )
    kept = hold_base(model, "bf16").parameters()
    assert estimate.weights_bytes == sum(p.numel() * p.element_size() for p in kept)
    assert any("bf16" in row["what"] for row in estimate.rows())


def test_recomputation_keeps_the_residual_and_one_block():
    options = {
        "parameters": 1_000_000,
        "launch": LaunchConfig(device="cuda", processes=1, strategy="single", threads=1),
    }
    config = llama(448).config.to_dict()
    training = TrainingConfig(precision="bf16", micro_batch_tokens=1000)
    whole = estimate_memory(config, training=training, **options)
    recomputed = training.model_copy(update={"gradient_checkpointing": True})
    less = estimate_memory(config, training=recomputed, **options)
    assert whole.activations_bytes is not None
    block = whole.activations_bytes // LAYERS
    assert less.activations_bytes == 1000 * 4 * HIDDEN * LAYERS + block


class Living(TorchDispatchMode):
    """It counts the bytes of tensors that were made within it and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, given=(), options=None):
        made = function(*given, **(options or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return made

    def bytes(self) -> int:
        return sum(size for storage, size in self._made.values() if not storage.expired())


def living_bytes(recomputed: str | None, *, precision: str, device: str) -> int:
    """Bytes of a token that are there between a forward and its backward pass."""
    model = llama(448)
    if device == "cpu":
        fuse(model)
    if recomputed:
        recompute(model, recomputed)
    scorer, rows = SequenceScorer(model).train(), batch()
    low = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with Living() as living, low:
        logps = scorer(rows)
    assert logps.requires_grad
    return living.bytes() // rows.input_ids.numel()


@pytest.mark.parametrize(
    ("precision", "device"), [("bf16", "cuda"), ("fp32", "cuda"), ("fp32", "cpu")]
)
def test_selective_recomputation_keeps_more_than_blocks_and_less_than_all(precision, device):
    kept = {
        what: living_bytes(what, precision=precision, device=device)
        for what in (None, "selective", "blocks")
    }
    assert kept["blocks"] < kept["selective"] < kept[None]
    estimates = {
        what: estimate_memory(
            llama(448).config.to_dict(),
            parameters=1_000_000,
            training=TrainingConfig(
                precision=precision,
                micro_batch_tokens=1000,
                gradient_checkpointing=True,
                recomputation=what,
            ),
            launch=LaunchConfig(device=device, processes=1, strategy="single", threads=1),
        )
        for what in ("selective", "blocks")
    }
    estimated = estimates["selective"].activations_bytes - estimates["blocks"].activations_bytes
    assert estimated / 1000 == pytest.approx(kept["selective"] - kept["blocks"], rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_inner": None, "vocab_size": 100},
        {"model_type": "mpt", "d_model": 64, "n_layers": 2, "vocab_size": 100},
        {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "vocab_size": 100},
        {"model_type": "xglm", "d_model": 64, "num_layers": 2, "ffn_dim": 256, "vocab_size": 100},
    ],
)
def test_the_names_of_other_architectures_are_known(config):
    estimate = estimate_memory(
        config,
        parameters=1000,
        training=TrainingConfig(precision="bf16", micro_batch_tokens=10),
        launch=LaunchConfig(device="cuda", processes=1, strategy="single", threads=1),
    )
    assert estimate.activations_bytes == 10 * 2 * (36 * 64 + 8 * 256)


def test_an_architecture_with_names_of_its_own_says_that_its_activations_are_not_known():
    estimate = estimate_memory(
        {"model_type": "strange", "vocab_size": 100},
        parameters=1000,
        training=TrainingConfig(precision="bf16"),
        launch=LaunchConfig(device="cuda", processes=1, strategy="single", threads=1),
    )
    rows = {row["what"]: row["GiB"] for row in estimate.rows()}
    assert rows["activations"] == "not known"
    assert "in all, but for activations" in rows


@pytest.mark.parametrize(
    "kind",
    # What drafts for another model has no configuration of its own.
    [kind for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if "assistant" not in kind],
)
def test_every_configuration_of_a_causal_architecture_has_an_estimate(kind):
    """From what its config.json has, whole or with what differs from the defaults alone."""
    config = AutoConfig.for_model(kind)
    for content in (config.to_dict(), config.to_diff_dict()):
        for strategy in ("single", "ddp", "deepspeed_zero2", "deepspeed_zero3"):
            launch = LaunchConfig(strategy=strategy, processes=2, device="cuda", threads=1)
            for training in (
                TrainingConfig(precision="bf16"),
                TrainingConfig(precision="fp32", lora_r=4, gradient_checkpointing=True),
            ):
                estimate = estimate_memory(
                    content, parameters=10**6, training=training, launch=launch
                )
                assert estimate.total_bytes > 0
                assert all(row["GiB"] for row in estimate.rows())
