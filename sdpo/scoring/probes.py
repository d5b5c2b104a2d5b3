"""Measure a model on the run's fixed probe sets, and have it write completions.

A probe is (model, rows): the reserve of every source, the seeded sample of every partition, and the
next partition whole where its log-probs are the next step's reference. Results are in ``probes/``,
beside the records: they can be made again at any time and are no part of a step's identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from sdpo.data.reserved_prompts import reserved_rows
from sdpo.events import EventWriter
from sdpo.model.sequence_scorer import inner_model
from sdpo.scoring.score_rows import Scorer, score_rows
from sdpo.store.logp_cache import LogpCache
from sdpo.system.files import publish_file, write_json
from sdpo.tokens.token_file import Ids, TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ProbeRows:
    """Each of these rows of the token file belongs to a probe."""

    pair_ids: pa.ChunkedArray
    prompt_keys: pa.ChunkedArray
    sources: pa.ChunkedArray
    probes: pa.ChunkedArray
    sampled: np.ndarray
    token_rows: np.ndarray


def probe_rows(plan: pa.Table, *, step: int, next_whole: bool = True) -> ProbeRows:
    """Return what model M_``step`` is measured on: see the module's docstring.

    ``next_whole``: whether that is all of D_{step + 1}, or its sample alone.
    ``plan`` has columns pair_id, prompt_key, source, step (0 = reserve), sampled, token_row.
    """
    steps = plan["step"].to_numpy()
    sampled = plan["sampled"].to_numpy(zero_copy_only=False)
    chosen = plan.filter(pa.array(sampled | (next_whole & (steps == step + 1))))
    step_names = pc.binary_join_element_wise("D_", chosen["step"].cast(pa.string()), "")
    reserve_names = pc.binary_join_element_wise("reserve:", chosen["source"], "")
    in_reserve = pc.equal(chosen["step"], 0)
    return ProbeRows(
        pair_ids=chosen["pair_id"],
        prompt_keys=chosen["prompt_key"],
        sources=chosen["source"],
        probes=pc.if_else(in_reserve, reserve_names, step_names),
        sampled=chosen["sampled"].to_numpy(zero_copy_only=False),
        token_rows=chosen["token_row"].to_numpy(),
    )


def measure(
    scorer: Scorer,
    tokens: TokenFile,
    rows: ProbeRows,
    *,
    name: str,
    cache: LogpCache,
    out: Path,
    events: EventWriter,
) -> int:
    """Score the probe rows under model ``name`` and publish ``out/<name>.parquet``.

    Returns the number of rows that had to be computed.
    """
    at = rows.token_rows
    scored = score_rows(
        scorer, tokens, at.tolist(), cache=cache, events=events, phase=f"measure {name}"
    )
    if scorer.accelerator.is_main_process:
        truncated = tokens.chosen_truncated[at] | tokens.rejected_truncated[at]
        table = pa.table(
            {
                "pair_id": rows.pair_ids,
                "prompt_key": rows.prompt_keys,
                "source": rows.sources,
                "probe": rows.probes,
                "sampled": rows.sampled,
                "chosen_logps": scored.logps.chosen.astype(np.float64),
                "rejected_logps": scored.logps.rejected.astype(np.float64),
                "chosen_tokens": tokens.chosen_lengths[at],
                "rejected_tokens": tokens.rejected_lengths[at],
                "complete": ~truncated,
            }
        )
        with publish_file(out / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary)
    return scored.computed


class CompletionPrompt(TypedDict):
    """This reserved prompt is one that models complete: as text to show, and as token ids."""

    prompt_key: str
    source: str
    prompt: str
    prompt_ids: Ids


def write_completions(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[CompletionPrompt],
    *,
    name: str,
    max_new_tokens: int,
    device: torch.device,
    out: Path | None,
    events: EventWriter,
) -> None:
    """Publish greedy completions as ``out/<name>.completions.json``; nowhere without ``out``.

    ``prompts``: mappings with ``prompt_key``, ``source``, ``prompt`` (text to show) and
    ``prompt_ids``.
    """
    policy = inner_model(policy.eval())
    ends = end_tokens(policy, tokenizer)
    written: list[dict[str, str | bool]] = []
    for index, prompt in enumerate(prompts):
        ids = torch.tensor(prompt["prompt_ids"], dtype=torch.long, device=device)[None]
        with torch.no_grad():
            output = policy.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=ends or None,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            )[0, ids.shape[1] :].tolist()
        finished = bool(output) and output[-1] in ends
        written.append(
            {
                "prompt_key": prompt["prompt_key"],
                "source": prompt["source"],
                "prompt": prompt["prompt"],
                "completion": tokenizer.decode(output, skip_special_tokens=True),
                "finished": finished,
            }
        )
        events.progress(f"completions of {name}", index + 1, len(prompts), unit="prompts")
    if out is not None:
        write_json(out / f"{name}.completions.json", written)


def end_tokens(policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens after which a completion stops: the model's and the tokenizer's."""
    ends = policy.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return sorted({t for t in [*listed, tokenizer.eos_token_id] if t is not None})


def completion_prompts(
    plan: pa.Table, tokens: TokenFile, pairs: Path, *, count: int
) -> list[CompletionPrompt]:
    """Choose ``count`` reserved prompts, spread over the sources, the same for every model."""
    picked = reserved_rows(plan, count=count)
    texts = _prompt_texts(pairs, {row["pair_id"] for row in picked})
    return [
        {
            "prompt_key": row["prompt_key"],
            "source": row["source"],
            "prompt": texts[row["pair_id"]],
            "prompt_ids": tokens.row(row["token_row"]).prompt_ids,
        }
        for row in picked
    ]


def _prompt_texts(pairs: Path, pair_ids: set[str]) -> dict[str, str]:
    table = pq.read_table(
        pairs, columns=["pair_id", "prompt"], filters=[("pair_id", "in", sorted(pair_ids))]
    )
    return {
        row["pair_id"]: "\n\n".join(
            f"{m['role']}: {_said(m)}" if len(row["prompt"]) > 1 else m["content"]
            for m in row["prompt"]
        )
        for row in table.to_pylist()
    }


def _said(message: dict[str, str]) -> str:
    return "\n".join(filter(None, (message["content"], message.get("rest"))))
