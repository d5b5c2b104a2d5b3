"""Have the models before and after each round answer the same reserved prompts, and judge both.

These nodes are views: what steps are made of does not depend on them. The answers are drawn as
samples are, by transformers, one of each prompt, and scored by the judge of the rounds.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import Expansion, Find, Identity, Made, Node, Part
from sdpo.chain.rounds import (
    GENERATION_VERSION,
    JUDGING_VERSION,
    judge_of,
    launch_of_judge,
    launch_of_round,
)
from sdpo.chain.start_stage import scoring_of
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import rule_of_tokens, tokens_path
from sdpo.config import SourceConfig
from sdpo.data.keys import draw_key
from sdpo.data.reserved_prompts import ReservedRow, reserved_rows
from sdpo.identity.canonical import digest_of
from sdpo.model_names import ModelName
from sdpo.processes.judging_specs import GenerateSpec, ScoreSpec
from sdpo.store.held_out import PREFIX, HeldOutputs
from sdpo.store.plan_file import read_plan
from sdpo.system.files import publish_file, temporary_folder
from sdpo.system.json_values import Json

_DRAWN = ("temperature", "top_p", "max_new_tokens")
_SCORES = ("rule", "reward_model")
_DRAW = b"held-out prompts"
"""These draw from numbers of their own: no prompt is a step's as well, but a key could be."""


def held_out(context: Context) -> list[Part]:
    """Return an expansion of the answers of all models of rounds to held-out prompts."""
    sources = [each for each in context.config.data.generated if _is_asked(each)]
    if not sources:
        return []

    def expand() -> list[Part]:
        steps = read_plan(context.run).steps[: context.last_step]
        return [
            _node(context, model, source)
            for source in sources
            for model in sorted(
                {
                    number
                    for step in steps
                    if step.generated and step.generated.source == source.name
                    for number in (step.step - 1, step.step)
                }
            )
        ]

    return [Expansion(title="held-out prompts", expand=expand, rule="every model of a round")]


def answers_of(context: Context, source: SourceConfig) -> int:
    """Return how many answers to held-out prompts all models of a source's rounds give."""
    if not _is_asked(source):
        return 0
    return len(_rows(context, source)) * (source.generate.rounds + 1)


def _is_asked(source: SourceConfig) -> bool:
    """Return whether answers can be scored: the implicit reward is of another model every round,
    and an endpoint scores none, but compares (``evaluation.win_rate``)."""
    return bool(source.generate.held_out) and source.generate.judge.kind in _SCORES


def _asked(context: Context, source: SourceConfig) -> dict[str, Json]:
    """Return what the answers of any model and their scores depend on beside the model."""
    settings = source.generate
    return {
        "generation_version": GENERATION_VERSION,
        "judging_version": JUDGING_VERSION,
        "micro_batch_tokens": context.config.training.micro_batch_tokens,
        "tokens": rule_of_tokens(context),
        "prompts": digest_of([row["prompt_key"] for row in _rows(context, source)]),
        "draw": {name: getattr(settings, name) for name in _DRAWN},
        "seed": settings.seed,
        "judge": dict(judge_of(context, source).identity),
    }


def _rows(context: Context, source: SourceConfig) -> list[ReservedRow]:
    return reserved_rows(pq.read_table(context.run.plan), count=source.generate.held_out)


def _node(context: Context, number: int, source: SourceConfig) -> Node:
    """Return the node of what M_number answers, and how it is judged."""
    name, asked = ModelName(number), digest_of([source.name, _asked(context, source)])[:8]
    target = context.run.evaluations / str(name) / f"held-{asked}.parquet"

    def identity() -> Identity:
        model = scoring_of(context, model_of(context, number).digest)
        return {"model": model, **_asked(context, source)}

    def make(_find: Find) -> Made:
        with temporary_folder(context.run.path) as scratch:
            table = _answered(context, number, source, scratch)
            with publish_file(target) as temporary:
                pq.write_table(table, temporary)
        outputs = HeldOutputs(
            model=str(name),
            source=source.name,
            judge=judge_of(context, source).title,
            asked=asked,
        )
        return Made(outputs.model_dump(mode="json"), [target])

    return Node(
        name=f"{PREFIX}{name}-{asked}",
        inputs=("plan", "tokens", f"step-{number}"),
        identity=identity,
        make=make,
        is_view=True,
    )


def _answered(context: Context, number: int, source: SourceConfig, scratch: Path) -> pa.Table:
    """Return a row for each held-out prompt: what M_number answered, and the score of it."""
    config, run, settings = context.config, context.run, source.generate
    rows, name = _rows(context, source), ModelName(number)
    drawn, scored = scratch / "drawn.parquet", scratch / "scores.parquet"
    context.stage(
        GenerateSpec(
            name=f"held-{name}",
            run=run.path,
            model=config.model,
            launch=launch_of_round(context),
            policy=model_of(context, number),
            base=context.resolved.model,
            prompts=run.pairs,
            tokens=tokens_path(context),
            rows=tuple(row["token_row"] for row in rows),
            training=config.training,
            n=1,
            seed=draw_key(settings.seed, _DRAW),
            max_tokens_total=0,
            max_minutes=0,
            serve=None,
            so_far=scratch / "drawn.jsonl",
            out=drawn,
            **settings.model_dump(include=set(_DRAWN)),
        )
    )
    context.stage(
        ScoreSpec(
            name=f"judge-held-{name}",
            run=run.path,
            model=config.model,
            launch=launch_of_judge(context, source),
            judge=judge_of(context, source),
            prompts=run.pairs,
            samples=drawn,
            kept=scratch / "verdicts",
            out=scored,
        )
    )
    answers = pq.read_table(drawn)
    keys = answers["prompt_key"].to_pylist()
    columns = ["prompt_key", "prompt"]
    prompts = pq.read_table(run.pairs, columns=columns, filters=[("prompt_key", "in", keys)])
    turns = dict(zip(*(prompts[each].to_pylist() for each in columns), strict=True))
    tokens = [len(ids) for ids in answers["token_ids"].to_pylist()]
    return pa.table(
        {
            "prompt_key": answers["prompt_key"],
            "prompt": pa.array([turns[key] for key in keys], prompts.schema.field("prompt").type),
            "text": answers["text"],
            "tokens": pa.array(tokens, pa.int32()),
            "finished": answers["finished"],
            "score": pq.read_table(scored)["score"],
        }
    )
