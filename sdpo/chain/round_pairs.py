"""Make the pairs of a round from its scored samples, and keep why every sample was used or not."""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import Identity
from sdpo.chain.round_prompts import samples_file, scores_file
from sdpo.config import SourceConfig
from sdpo.data.keys import draw_key, pair_id
from sdpo.data.pairing import Pairing, Ranked, Sample, pair_samples
from sdpo.data.pairs_file import messages_from_row
from sdpo.data.planned import Planned
from sdpo.data.schema import PAIRS_SCHEMA, Message
from sdpo.errors import DataError
from sdpo.events import WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.processes.stage_results import Served
from sdpo.stats.text import distinct
from sdpo.store.plan_file import read_plan
from sdpo.store.records import Part
from sdpo.store.step_data import generate_node, step_data
from sdpo.system.files import file_digest, publish_file
from sdpo.system.json_values import Json, JsonObject

_MORE = "more than its share of the step"
PAIRING_VERSION = 1
"""This is raised when a change of the project's code makes other pairs of the same scores."""
_PAIRED = ("pair", "k", "min_margin", "length_penalty", "unfinished", "seed")

_SAMPLES = pa.schema(
    [
        ("prompt_key", pa.string()),
        ("prompt", PAIRS_SCHEMA.field("prompt").type),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
        ("score", pa.float64()),
        ("kl", pa.float64()),
        ("reward", pa.float64()),
        ("rank", pa.int32()),
        ("use", pa.string()),
        ("pair_id", pa.string()),
        ("engine", pa.string()),
    ]
)
"""``samples.parquet`` has these columns, a row for each sample, by prompt and number.

``reward``: the score less the length penalty. ``rank`` is from 1; 0: not ranked. ``use``:
``chosen`` or ``rejected`` in the pair ``pair_id``, or why it is in none. ``kl``: KL(M_{t-1}||S)
along the sample in nats, where the judge has measured it. ``engine``: what drew it; of a server
its name and version.
"""


class _Drawn(Part):
    """The record of the samples says this of what drew them."""

    engine: str
    served: Served | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paired:
    """A prompt has these samples and pairs; ``row`` is that of ``prompts.parquet``."""

    row: dict[str, Any]
    samples: list[dict[str, Any]]
    pairing: Pairing


def pairs_identity(context: Context, step: int, source: SourceConfig) -> Identity:
    """Return what the pairs of a round depend on."""
    return {
        "pairing_version": PAIRING_VERSION,
        "samples": file_digest(samples_file(context.run, step)),
        "scores": file_digest(scores_file(context.run, step)),
        "pairing": {name: getattr(source.generate, name) for name in _PAIRED},
        "earlier": digest_of(sorted(_earlier_pairs(context, step))),
        **({"most": most} if (most := _most(context, step, source)) is not None else {}),
    }


def write_pairs(context: Context, step: int, source: SourceConfig, path: Path) -> JsonObject:
    """Write the pairs of a round to ``path``, publish ``samples.parquet``, and count.

    A pair that an earlier step has is left out, or the step itself where the round joins it. Of a
    round that has a share of its step so many are drawn as make that share.

    Raises:
        DataError: no pair is left; says why, with the counts.
    """
    paired = list(_paired(context, step, source))
    rows, use, dropped = _made(context, step, source, paired)
    counts = Counter(r.left for each in paired for r in each.pairing.samples if r.left)
    if not rows:
        raise _no_pair(step, source, paired, dropped, counts)
    with publish_file(context.run.step(step) / "samples.parquet") as temporary:
        pq.write_table(_samples_table(paired, use, engine=_engine(context, step)), temporary)
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), path)
    return _said(paired, rows, dropped, counts)


_Use = dict[tuple[str, int], tuple[str, str]]
"""Samples, by prompt and number, are used so, in the pair of this id."""


def _made(
    context: Context, step: int, source: SourceConfig, paired: list[_Paired]
) -> tuple[list[dict[str, Any]], _Use, Counter[str]]:
    """Return the rows of the pairs that are made, the use of their samples, and why others are
    not made."""
    earlier, seen = _earlier_pairs(context, step), set[str]()
    rows: list[dict[str, Any]] = []
    use: _Use = {}
    dropped = Counter(reason for each in paired for reason in each.pairing.dropped)
    for each in paired:
        for chosen, rejected in each.pairing.pairs:
            row = _pair(each.row, chosen, rejected, source=source.name)
            is_again = row["pair_id"] in earlier or row["pair_id"] in seen
            if is_again:
                dropped["an earlier step has the pair"] += 1
                continue
            seen.add(row["pair_id"])
            rows.append(row)
            key = each.row["prompt_key"]
            use[key, chosen.sample.number] = "chosen", row["pair_id"]
            use[key, rejected.sample.number] = "rejected", row["pair_id"]
    if more := _more_than_share(context, step, source, rows):
        rows = [row for row in rows if row["pair_id"] not in more]
        dropped[_MORE] += len(more)
        use = {
            at: (_MORE, "") if pair in more else (what, pair) for at, (what, pair) in use.items()
        }
    return rows, use, dropped


def _most(context: Context, step: int, source: SourceConfig) -> int | None:
    """Return how many pairs a round may have that has a share of its step; None: any number."""
    share = source.generate.share
    if not share:
        return None
    given = read_plan(context.run).steps[step - 1].pairs
    return max(1, round(given * share / (1 - share)))


def _more_than_share(
    context: Context, step: int, source: SourceConfig, rows: list[dict[str, Any]]
) -> Set[str]:
    """Return the ids of the pairs that a round has too many, by a draw; warn of too few."""
    most, seed = _most(context, step, source), source.generate.seed
    if most is None:
        return set()
    if len(rows) < most:
        message = (
            f"step {step}: source {source.name} has {len(rows)} pairs, and generate.share "
            f"{source.generate.share:g} asks for {most}: its share is smaller. Raise per_round or n"
        )
        context.listen(WarningEvent(message=message))
    ids = sorted(row["pair_id"] for row in rows)
    ids.sort(key=lambda each: draw_key(seed, each.encode()))
    return set(ids[most:])


def _no_pair(
    step: int,
    source: SourceConfig,
    paired: list[_Paired],
    dropped: Counter[str],
    left: Counter[str],
) -> DataError:
    settings = source.generate
    samples = sum(len(each.samples) for each in paired)
    told = ", ".join(f"{n} {reason}" for reason, n in dropped.most_common()) or "none"
    of_samples = ", ".join(f"{n} {reason}" for reason, n in left.most_common())
    remedies = {
        "min_margin": f"lower generate.min_margin ({settings.min_margin:g})",
        "tie": "take a judge that tells the samples apart, or raise generate.temperature or n",
        "no sample": f"raise generate.max_new_tokens ({settings.max_new_tokens}), or set "
        "generate.unfinished: keep",
    }
    remedies["no two samples"] = (
        remedies["no sample"] if left["unfinished"] > left["repeated"] else remedies["tie"]
    )
    most = dropped.most_common(1)[0][0] if dropped else ""
    remedy = remedies.get(most, "give more prompts, or samples of each (generate.n)")
    return DataError(
        f"step {step}: no pair is left of {samples} samples of {len(paired)} prompts of source "
        f"{source.name}: pairs not made: {told}"
        f"{f'; samples left out: {of_samples}' if of_samples else ''}. To change it, {remedy}"
    )


def _paired(context: Context, step: int, source: SourceConfig) -> Iterator[_Paired]:
    """Yield every answered prompt with its samples, ranked and paired, by the prompt's key."""
    run = context.run
    prompts = pq.read_table(run.step(step) / "prompts.parquet").to_pylist()
    row_of = {row["prompt_key"]: row for row in prompts}
    scores = pq.read_table(scores_file(run, step)).to_pylist()
    score_of = {(row["prompt_key"], row["sample"]): row for row in scores}
    of_prompt: dict[str, list[dict[str, Any]]] = {}
    table = pq.read_table(samples_file(run, step))
    for row in table.drop_columns(["prompt_ids"]).to_pylist():
        judged = score_of[row["prompt_key"], row["sample"]]
        row |= {"score": judged["score"], "kl": judged.get("kl")}
        of_prompt.setdefault(row["prompt_key"], []).append(row)
    for key in sorted(of_prompt):
        rows = of_prompt[key]
        samples = [
            Sample(
                number=row["sample"],
                text=row["text"],
                tokens=len(row["token_ids"]),
                finished=row["finished"],
                score=row["score"],
            )
            for row in rows
        ]
        seed = source.generate.seed
        pairing = pair_samples(samples, settings=source.generate, prompt_key=key, seed=seed)
        yield _Paired(row=row_of[key], samples=rows, pairing=pairing)


def _pair(
    prompt: dict[str, Any], chosen: Ranked, rejected: Ranked, *, source: str
) -> dict[str, Any]:
    """Return a row of ``pairs.parquet``: a prompt with two of its samples."""
    role = "text" if prompt["format"] == "text" else "assistant"
    turns = messages_from_row(prompt["prompt"])
    sides = [[Message(role, side.sample.text)] for side in (chosen, rejected)]
    return {
        **prompt,
        "pair_id": pair_id(
            turns,
            chosen=sides[0],
            rejected=sides[1],
            template_inputs=prompt["template_inputs"] or "",
        ),
        "source": source,
        "chosen": [{"role": role, "content": chosen.sample.text, "rest": None}],
        "rejected": [{"role": role, "content": rejected.sample.text, "rest": None}],
        "chosen_score": chosen.reward,
        "rejected_score": rejected.reward,
        "strata": [],
        "chosen_chars": len(chosen.sample.text),
        "rejected_chars": len(rejected.sample.text),
    }


def _earlier_pairs(context: Context, step: int) -> Set[str]:
    """Return the ids of the pairs that earlier steps have, those of their own included, and of
    those that the run's plan gives this step."""
    run = context.run
    plan = Planned(plan=run.plan, pairs=run.pairs, own=step_data(run, last=step - 1))
    table = plan.table(["pair_id", "step"])
    steps = table["step"].to_numpy()
    ids = table.filter(pa.array((steps > 0) & (steps <= step)))["pair_id"].to_pylist()
    return set(ids)


def _engine(context: Context, step: int) -> str:
    drawn = context.run.record(generate_node(step)).read_outputs(_Drawn)
    return drawn.served.title if drawn.served else drawn.engine


def _samples_table(paired: list[_Paired], use: _Use, *, engine: str) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for each in paired:
        for row, ranked in zip(each.samples, each.pairing.samples, strict=True):
            used, pair = use.get(
                (row["prompt_key"], row["sample"]), (ranked.left or "not paired", "")
            )
            rows.append(
                {
                    **row,
                    "prompt": each.row["prompt"],
                    "tokens": ranked.sample.tokens,
                    "reward": ranked.reward,
                    "rank": ranked.rank,
                    "use": used,
                    "pair_id": pair,
                    "engine": engine,
                }
            )
    return pa.Table.from_pylist(rows, schema=_SAMPLES)


def _said(
    paired: list[_Paired],
    rows: list[dict[str, Any]],
    dropped: Counter[str],
    left: Counter[str],
) -> dict[str, Json]:
    """Return what the record says of a round: counts, and means over its samples."""
    samples = [ranked for each in paired for ranked in each.pairing.samples]
    texts = [ranked.sample.text for ranked in samples]
    margins = [row["chosen_score"] - row["rejected_score"] for row in rows]
    return {
        "prompts": len(paired),
        "samples": len(samples),
        "pairs_not_made": dict(dropped),
        "samples_left_out": dict(left),
        "score": float(np.mean([ranked.sample.score for ranked in samples])),
        "margin": float(np.mean(margins)),
        "tokens": float(np.mean([ranked.sample.tokens for ranked in samples])),
        "finished": float(np.mean([ranked.sample.finished for ranked in samples])),
        "distinct_2": distinct(texts, 2),
    }
