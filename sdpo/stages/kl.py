"""Measure how far a model has moved: draw samples from it, and compute KL to others along them.

The stage holds at most two models at a time, M_t and the one that it is compared with: 8 bytes per
parameter in fp32, a micro-batch's hidden states of both, and one chunk of logits. It runs in one
process on one device, whatever the steps run on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.config.sampler import PAPER, SAMPLERS, Sampler
from sdpo.data.reserved_prompts import reserved_rows
from sdpo.events import EventWriter
from sdpo.model.by_length import changes_itself
from sdpo.model.policy import load_policy
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence
from sdpo.model_names import NamedModel
from sdpo.processes.stage_results import KlResult
from sdpo.processes.stage_specs import KlSpec
from sdpo.scoring.divergence import Divergence, divergence
from sdpo.scoring.probes import end_tokens
from sdpo.scoring.sampling import Completion, Prompt, sample
from sdpo.stages.timings import Timings
from sdpo.system.files import publish_folder
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Forwards(TypedDict):
    """Sequences are computed with these options, whether they are sampled or compared."""

    pad_token_id: int
    device: torch.device
    micro_batch_tokens: int


_TO_LOAD = (
    "KL divergence takes two models at a time, 8 bytes for each weight of one: take a device that "
    "has them free, or set probe.kl_prompts: 0, for none"
)
_SKIPPED = {PAPER: 1}
"""A way of sampling leaves out so many scored tokens at the start, as the paper's code does."""


def run(spec: KlSpec, events: EventWriter) -> KlResult:
    """Publish ``samples.parquet`` and ``kl.parquet`` in the folder ``spec.out``."""
    torch.set_num_threads(spec.launch.threads)
    timings, device = Timings(), torch.device(spec.launch.device)
    with timings.of("load"):
        policy = _load(spec, spec.policy, events)
        tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    budget = micro_batch_tokens(spec.training.micro_batch_tokens, device=device.type)
    if changes_itself(policy):
        budget = 1  # one sequence at a time: what a model gives it may depend on its neighbours
    options = _Forwards(pad_token_id=pad, device=device, micro_batch_tokens=budget)
    bf16 = spec.training.precision == "bf16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        with timings.of("sample"):
            prompts, sources = _prompts(spec, _positions(policy))
            completions = {
                name: _sample(spec, policy, prompts, SAMPLERS[name], tokenizer, events, options)
                for name in spec.samplers
            }
        rows: list[pa.Table] = []
        for other in spec.others:
            with timings.of("load"):
                model = _load(spec, other, events)
            with timings.of("kl"):
                for name, written in completions.items():
                    events.phase("kl", detail=f"{spec.policy.name}, {other.name}")
                    sequences = [
                        TokenSequence(np.concatenate([prompt.ids, done.ids]), len(prompt.ids))
                        for prompt, done in zip(prompts, written, strict=True)
                    ]
                    found = divergence(
                        policy, model, sequences, skip=_SKIPPED.get(name, 0), **options
                    )
                    rows.append(_table(prompts, sources, written, found, name, other.name))
            del model  # before the next one is loaded
    with publish_folder(spec.out) as temporary:
        samples = _samples(prompts, sources, completions, tokenizer)
        pq.write_table(samples, temporary / "samples.parquet")
        pq.write_table(pa.concat_tables(rows), temporary / "kl.parquet")
    return KlResult(timings_s=timings.rounded())


def _load(spec: KlSpec, named: NamedModel, events: EventWriter) -> "PreTrainedModel":
    """Return a model of the run, known by its digest, with a head whose log-probs were checked.

    Raises:
        ModelError: it is another model, or treats its logits in an unknown way.
    """
    events.phase("load", detail=f"{named.name} from {named.folder}")
    device = torch.device(spec.launch.device)
    with short_memory_named(f"loading {named.name}", remedy=_TO_LOAD):
        policy = load_policy(named.folder, model=spec.model, digest=named.digest).to(device)
    # Autocast keeps copies of weights that train, until the end of the stage: none does here.
    policy = policy.eval().requires_grad_(False)
    vocabulary = policy.config.get_text_config().vocab_size
    SequenceScorer(policy).check_head(vocabulary=vocabulary, device=device)
    return policy


def _positions(policy: "PreTrainedModel") -> int:
    text = policy.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", 0) or 0)


def _prompts(spec: KlSpec, positions: int) -> tuple[list[Prompt], list[str]]:
    """Return reserved prompts with room for a completion, once per sample, and their sources."""
    tokens, plan = TokenFile.open(spec.tokens), pq.read_table(spec.plan)
    prompts: list[Prompt] = []
    sources: list[str] = []
    for row in reserved_rows(plan, count=spec.probe.kl_prompts):
        ids = tokens.row(row["token_row"]).prompt_ids
        if positions and len(ids) >= positions:
            continue
        for number in range(spec.probe.kl_samples):
            prompts.append(Prompt(key=row["prompt_key"], ids=ids, sample=number))
            sources.append(row["source"])
    return prompts, sources


def _sample(
    spec: KlSpec,
    policy: "PreTrainedModel",
    prompts: Sequence[Prompt],
    sampler: Sampler,
    tokenizer: "PreTrainedTokenizerBase",
    events: EventWriter,
    options: _Forwards,
) -> list[Completion]:
    def progress(done: int) -> None:
        phase = f"samples of {spec.policy.name}, {sampler.name}"
        events.progress(phase, done, len(prompts), unit="samples")

    return sample(
        policy,
        prompts,
        sampler=sampler,
        seed=spec.probe.seed,
        max_new_tokens=spec.probe.kl_tokens,
        positions=_positions(policy),
        ends=end_tokens(policy, tokenizer),
        on_batch=progress,
        **options,
    )


def _table(
    prompts: Sequence[Prompt],
    sources: list[str],
    written: Sequence[Completion],
    found: Divergence,
    sampler: str,
    against: str,
) -> pa.Table:
    """Return one row per sequence, with sums in nats over its ``tokens`` tokens."""
    return pa.table(
        {
            "prompt_key": [prompt.key for prompt in prompts],
            "source": sources,
            "sample": pa.array([prompt.sample for prompt in prompts], pa.int32()),
            "sampler": [sampler] * len(prompts),
            "against": [against] * len(prompts),
            "tokens": pa.array(found.tokens, pa.int32()),
            "finished": [completion.finished for completion in written],
            "kl": found.kl,
            "k1": found.k1,
            "k3": found.k3,
        }
    )


def _samples(
    prompts: Sequence[Prompt],
    sources: list[str],
    completions: dict[str, list[Completion]],
    tokenizer: "PreTrainedTokenizerBase",
) -> pa.Table:
    rows = [
        {
            "prompt_key": prompt.key,
            "source": source,
            "sample": prompt.sample,
            "sampler": name,
            "token_ids": done.ids.tolist(),
            "text": tokenizer.decode(done.ids, skip_special_tokens=True),
            "finished": done.finished,
        }
        for name, written in completions.items()
        for prompt, source, done in zip(prompts, sources, written, strict=True)
    ]
    return pa.Table.from_pylist(rows)
