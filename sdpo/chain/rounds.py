"""Make the pairs of a generated step: M_{t-1} answers prompts, a judge scores, pairs are made.

Three nodes: ``generate-t`` keeps the answers, ``judge-t`` their scores, ``data-t`` the pairs with
their rows and tokens. So another judge reuses the answers, and another beta reuses all of it.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import Expansion, Find, Identity, Made, Node, Part
from sdpo.chain.round_pairs import pairs_identity, write_pairs
from sdpo.chain.round_prompts import (
    draw_prompts,
    prompts_identity,
    prompts_left,
    samples_file,
    scores_file,
    source_of,
)
from sdpo.chain.start_stage import scoring_of
from sdpo.chain.step_data import make_step_data
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import rule_of_tokens, tokenise_spec
from sdpo.config import LaunchConfig, SourceConfig
from sdpo.config.generating import GenerateConfig
from sdpo.config.judging import JudgeConfig
from sdpo.data.keys import draw_key
from sdpo.errors import DataError
from sdpo.events import NoteEvent, WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.inputs.judges import LocatedJudge, locate_judge
from sdpo.inputs.servers import refuse_unpermitted
from sdpo.model_names import ModelName
from sdpo.processes.judging_specs import GenerateSpec, ImplicitSpec, ScoreSpec, ServeSpec
from sdpo.processes.nodes.rendezvous import takes_part
from sdpo.processes.stage_results import GenerateResult, ScoresResult
from sdpo.store.plan_file import Round
from sdpo.store.step_data import data_node, generate_node, judge_node
from sdpo.system.files import file_digest, publish_file, remove
from sdpo.system.json_values import Json
from sdpo.system.words import counted

GENERATION_VERSION = 1
"""This is raised when a change of the project's code changes what is sampled."""
JUDGING_VERSION = 1
"""This is raised when a change of the project's code changes scores."""
_DRAWN = ("n", "temperature", "top_p", "max_new_tokens", "engine")
_CEILINGS = ("max_tokens_total", "max_minutes")


def round_data(context: Context, step: int, made: Round) -> Expansion:
    """Return the part that makes what a generated step has of its own."""
    source = source_of(context, made.source)

    def parts() -> list[Part]:
        return [_generate(context, step, source), _judge(context, step, source), data]

    data = make_step_data(
        context,
        step,
        inputs=(generate_node(step), judge_node(step)),
        identity=lambda: pairs_identity(context, step, source),
        write=lambda path: write_pairs(context, step, source, path),
        beside=[context.run.step(step) / "samples.parquet"],
    )
    return Expansion(
        title=f"step {step}: D_{step} by M_{step - 1} ({made.source}, round {made.round})",
        expand=parts,
        foreseen=lambda: (generate_node(step), judge_node(step), data_node(step)),
    )


def check_rounds(context: Context, sources: Sequence[SourceConfig]) -> Expansion:
    """Return a look at the prompts of all rounds of ``sources``, before anything is trained.

    Expanding it raises a DataError where a source has none that may be answered, and a ConfigError
    where the owner of this machine has not permitted the server that is to answer them.
    """

    def parts() -> list[Part]:
        for source in sources:
            _check_prompts(context, source)
            _check_server(context, source)
        return []

    return Expansion(title="prompts", expand=parts)


def _check_server(context: Context, source: SourceConfig) -> None:
    """Refuse a server that may not be started here, unless it has drawn all samples already."""
    settings, run = source.generate, context.run
    if settings.engine == "openai":
        drawn = sum(node.startswith(generate_node(0)[:-1]) for node in run.nodes())
        rounds = sum(each.generate.rounds for each in context.config.data.generated)
        if drawn < rounds:
            refuse_unpermitted(settings.serve)


def _check_prompts(context: Context, source: SourceConfig) -> None:
    settings = source.generate
    left = prompts_left(context, source)
    needed = settings.per_round * (1 if settings.again else settings.rounds)
    if not left:
        raise DataError(
            f"source {source.name} has no prompt that may be answered: all are reserved, by which "
            "models are judged. Give more prompts, or lower data.reserve.fraction"
        )
    last = (settings.rounds - 1) * settings.per_round
    if not settings.again and settings.rounds > 1 and left <= last:
        raise DataError(
            f"source {source.name} has {counted(left, 'prompt')} that may be answered, and "
            f"{settings.rounds} rounds of {settings.per_round} leave none for the last: lower "
            "generate.per_round or rounds, give more prompts, or set generate.again: true"
        )
    if left < needed:
        message = (
            f"source {source.name} has {counted(left, 'prompt')} that may be answered, fewer than "
            f"the {needed} that its rounds ask for: the last round has fewer"
        )
        context.listen(WarningEvent(message=message))
    if settings.max_new_tokens > 0.75 * context.config.data.max_length:
        message = (
            f"source {source.name}: generate.max_new_tokens {settings.max_new_tokens} is most of "
            f"data.max_length {context.config.data.max_length}: pairs keep no more than the latter"
        )
        context.listen(NoteEvent(message=message))


def _generate(context: Context, step: int, source: SourceConfig) -> Node:
    """Return the node that keeps what M_{t-1} answers, ``generated.parquet`` and its prompts."""
    folder, out = context.run.step(step), samples_file(context.run, step)
    prompts, tokens = folder / "prompts.parquet", folder / "tokens" / "prompts.arrow"
    training = context.config.training

    def identity() -> Identity:
        settings = source.generate
        return {
            "generation_version": GENERATION_VERSION,
            "model": scoring_of(context, model_of(context, step - 1).digest),
            "micro_batch_tokens": training.micro_batch_tokens,
            "tokens": rule_of_tokens(context),
            "prompts": prompts_identity(context, step, source),
            "draw": {name: getattr(settings, name) for name in _DRAWN},
            **({"serve": list(settings.serve)} if settings.engine == "openai" else {}),
        }

    def make(_find: Find) -> Made:
        table = draw_prompts(context, step, source)
        tokens.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(prompts) as temporary:
            pq.write_table(table, temporary)
        name = f"tokenise-prompts-{step}"
        context.stage(tokenise_spec(context, prompts, out=tokens, name=name))
        settings, key = source.generate, digest_of(identity())[:32]
        so_far = _working(context, step) / f"{key}.jsonl"
        spec = GenerateSpec(
            name=generate_node(step),
            run=context.run.path,
            model=context.config.model,
            launch=launch_of_round(context, is_here=settings.engine == "transformers"),
            policy=model_of(context, step - 1),
            base=context.resolved.model,
            prompts=prompts,
            tokens=tokens,
            training=training,
            seed=draw_key(settings.seed, step.to_bytes(4, "big")),
            serve=_serve_spec(settings),
            so_far=so_far,
            out=out,
            **settings.model_dump(include={*_DRAWN, *_CEILINGS} - {"engine"}),
        )
        found = context.stage(spec).read(GenerateResult)
        remove(so_far.parent)
        if not found.prompts:
            raise DataError(
                f"step {step}: none of the {table.num_rows} prompts of source {source.name} can "
                f"be answered: {found.no_tokens} cannot be used as tokens, {found.no_room} leave "
                "no position for an answer"
            )
        outputs: dict[str, Json] = {
            "model": str(ModelName(step - 1)),
            "digest": spec.policy.digest,
            "source": source.name,
            "engine": settings.engine,
            "seed": settings.seed,
            **found.model_dump(mode="json", exclude_none=True),
        }
        return Made(outputs, [prompts, tokens, out])

    return Node(
        name=generate_node(step),
        inputs=("reserve", "tokens", f"step-{step - 1}"),
        identity=identity,
        make=make,
    )


def _serve_spec(settings: GenerateConfig) -> ServeSpec | None:
    if settings.engine != "openai":
        return None
    return ServeSpec(
        command=tuple(settings.serve), ready_s=settings.serve_ready_s, parallel=settings.parallel
    )


def _judge(context: Context, step: int, source: SourceConfig) -> Node:
    """Return the node that scores the answers."""
    samples, is_implicit = samples_file(context.run, step), source.generate.judge.implicit

    def identity() -> Identity:
        return {
            "judging_version": JUDGING_VERSION,
            "samples": file_digest(samples),
            "judge": _implicit_identity(context, step, source)
            if is_implicit
            else judge_of(context, source).identity,
        }

    def make(_find: Find) -> Made:
        spec = _implicit_spec if is_implicit else _judge_spec
        context.stage(spec(context, step, source)).read(ScoresResult)
        remove(_working(context, step))
        return Made({"judge": judged_by(context, source)}, [scores_file(context.run, step)])

    return Node(
        name=judge_node(step),
        inputs=(generate_node(step), *(("step-0",) if is_implicit else ())),
        identity=identity,
        make=make,
    )


def judge_of(context: Context, source: SourceConfig) -> LocatedJudge:
    """Return the judge of a generated source, where it is not the implicit reward."""
    judge = source.generate.judge
    given = JudgeConfig.model_validate(judge.model_dump(include=set(JudgeConfig.model_fields)))
    return locate_judge(given, where=f"{source.name}.generate.judge", cache=context.cache)


def judged_by(context: Context, source: SourceConfig) -> str:
    """Return in words what scores the samples."""
    judge = source.generate.judge
    if judge.implicit:
        return f"beta log(M_t-1/S), beta {judge.implicit_beta:g}"
    return judge_of(context, source).title


def launch_of_judge(context: Context, source: SourceConfig) -> LaunchConfig:
    """Return the processes that score samples: several where each has the judge as a model."""
    return launch_of_round(context, is_here=source.generate.judge.kind == "reward_model")


def launch_of_round(context: Context, *, is_here: bool = True) -> LaunchConfig:
    """Return the processes of a stage that computes with whole models, where these are ``is_here``.

    Where they are not (a server, an endpoint, a rule) it is one process, on this machine if it is
    one of the nodes.
    """
    launch = context.config.launch
    if is_here:
        return launch.of_whole_models
    on_this = {"launcher": "local"} if takes_part(launch) else {}
    return launch.alone.model_copy(update=on_this)


def _judge_spec(context: Context, step: int, source: SourceConfig) -> ScoreSpec:
    return ScoreSpec(
        name=judge_node(step),
        run=context.run.path,
        model=context.config.model,
        launch=launch_of_judge(context, source),
        judge=judge_of(context, source),
        prompts=context.run.step(step) / "prompts.parquet",
        samples=samples_file(context.run, step),
        kept=_working(context, step) / "verdicts",
        out=scores_file(context.run, step),
    )


def _implicit_spec(context: Context, step: int, source: SourceConfig) -> ImplicitSpec:
    return ImplicitSpec(
        name=judge_node(step),
        run=context.run.path,
        model=context.config.model,
        launch=launch_of_round(context),
        policy=model_of(context, step - 1),
        start=model_of(context, 0),
        base=context.resolved.model,
        samples=samples_file(context.run, step),
        training=context.config.training,
        beta=source.generate.judge.implicit_beta,
        kept=_working(context, step) / "scored",
        out=scores_file(context.run, step),
    )


def _implicit_identity(context: Context, step: int, source: SourceConfig) -> Identity:
    return {
        "implicit_beta": source.generate.judge.implicit_beta,
        "policy": scoring_of(context, model_of(context, step - 1).digest),
        "start": scoring_of(context, model_of(context, 0).digest),
    }


def _working(context: Context, step: int) -> Path:
    """Return the folder of what is not complete yet: it goes on from there."""
    return context.run.step(step) / "generating"
