"""Have a model answer prompts, for win rates: each process of the launch its share of them."""

from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.config.sampler import Sampler
from sdpo.data.schema import MESSAGES
from sdpo.errors import DataError
from sdpo.events import EventWriter
from sdpo.generation.answers import Drawing, draw_answers
from sdpo.generation.sample_log import Answer, SampleLog, samples_in
from sdpo.model.by_length import changes_itself
from sdpo.model.policy import load_policy
from sdpo.model.share import join
from sdpo.processes.judging_specs import CompletionsSpec
from sdpo.processes.stage_results import CompletionsResult
from sdpo.scoring.probes import end_tokens
from sdpo.store.win_rates import ANSWERS_SO_FAR, COMPLETIONS, answers_so_far
from sdpo.system.files import publish_file
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TO_LOAD = "answering takes 4 bytes for each weight and the keys and values of a batch"
_ON_A_GPU = 64
"""The answers to so many prompts may share batches on a GPU."""
_ON_A_CPU = 8
"""There it is so many at most: a token of eight answers takes little more time than one of one
answer, which is that of reading the weights. Few prompts make four blocks of fewer, so that
processes have a share each."""


class _Row(TypedDict):
    prompt_key: str
    source: str
    prompt: list[dict[str, str]]
    prompt_ids: list[int]


def run(spec: CompletionsSpec, events: EventWriter) -> CompletionsResult:
    """Publish ``completions.parquet`` in the folder ``spec.out``.

    Answers are kept there as they come, in a file of each process, and are not drawn again.
    """
    share, device = join(spec.launch)
    policy = _load(spec, device, events)
    tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    positions = int(getattr(policy.config.get_text_config(), "max_position_embeddings", 0) or 0)
    rows = _fitting(spec, positions, events)
    n, own = spec.win_rate.samples, spec.out / share.named(ANSWERS_SO_FAR)
    log = SampleLog(own, n=n, others=[p for p in answers_so_far(spec.out) if p != own])
    # On a CPU blocks are the same, and with them all bits, whatever the number of processes.
    is_cpu = device.type == "cpu"
    together = max(1, min(_ON_A_CPU, len(rows) // 4)) if is_cpu else _ON_A_GPU
    mine = [
        (row["prompt_key"], np.array(row["prompt_ids"], dtype=np.int32))
        for number, row in enumerate(rows)
        if share.has(number // together if is_cpu else number)
    ]
    phase, note = f"answers of {spec.policy.name}", share.told
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.bf16):
        draw_answers(
            policy,
            mine,
            drawing=_drawing(spec, policy, tokenizer, positions, device, together),
            log=log,
            on_prompt=lambda done, _: events.progress(
                phase, done, len(mine), unit="prompts", note=note
            ),
        )
    drawn = share.seen_by_all([own])
    if share.is_first:
        written = samples_in(sorted({*answers_so_far(spec.out), *drawn}), n=n)
        with publish_file(spec.out / COMPLETIONS) as temporary:
            pq.write_table(_table(rows, written, tokenizer), temporary)
    share.wait()
    return CompletionsResult(answers=len(rows) * n)


def _load(spec: CompletionsSpec, device: torch.device, events: EventWriter) -> "PreTrainedModel":
    events.phase("load", detail=f"{spec.policy.name} from {spec.policy.folder}")
    with short_memory_named(f"loading {spec.policy.name}", remedy=_TO_LOAD):
        policy = load_policy(spec.policy.folder, model=spec.model, digest=spec.policy.digest)
        return policy.to(device).eval().requires_grad_(False)


def _fitting(spec: CompletionsSpec, positions: int, events: EventWriter) -> list[_Row]:
    """Return the prompts that leave room for an answer.

    Raises:
        DataError: none does.
    """
    rows: list[_Row] = pq.read_table(spec.prompts).to_pylist()
    fitting = [row for row in rows if not positions or len(row["prompt_ids"]) < positions]
    if not fitting:
        raise DataError(
            f"no prompt leaves room for an answer: all {len(rows)} have {positions} tokens or "
            f"more, the positions of {spec.policy.name}"
        )
    if left_out := len(rows) - len(fitting):
        events.warning(
            f"{left_out} of {len(rows)} prompts have {positions} tokens or more, the positions of "
            f"{spec.policy.name}: they are left out of the win rates"
        )
    return fitting


def _drawing(
    spec: CompletionsSpec,
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    positions: int,
    device: torch.device,
    together: int,
) -> Drawing:
    budget = micro_batch_tokens(spec.micro_batch_tokens, device=device.type)
    return Drawing(
        sampler=Sampler(name="win_rate", temperature=spec.win_rate.temperature),
        seed=spec.win_rate.seed,
        n=spec.win_rate.samples,
        max_new_tokens=spec.win_rate.max_new_tokens,
        positions=positions,
        ends=tuple(end_tokens(policy, tokenizer)),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        device=device,
        micro_batch_tokens=1 if changes_itself(policy) else budget,
        together=together,
    )


def _table(
    rows: list[_Row], written: dict[str, list[Answer]], tokenizer: "PreTrainedTokenizerBase"
) -> pa.Table:
    answers = [
        (row, number, done)
        for row in rows
        for number, done in enumerate(written[row["prompt_key"]])
    ]
    texts = [tokenizer.decode(done.ids, skip_special_tokens=True) for *_, done in answers]
    return pa.table(
        {
            "prompt_key": pa.array([row["prompt_key"] for row, *_ in answers], pa.string()),
            "source": pa.array([row["source"] for row, *_ in answers], pa.string()),
            "sample": pa.array([number for _, number, _ in answers], pa.int32()),
            "prompt": pa.array([row["prompt"] for row, *_ in answers], MESSAGES),
            "text": pa.array(texts, pa.string()),
            "token_ids": pa.array([done.ids for *_, done in answers], pa.list_(pa.int32())),
            "finished": pa.array([done.finished for *_, done in answers], pa.bool_()),
        }
    )
