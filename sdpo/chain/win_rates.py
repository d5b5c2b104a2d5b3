"""Have every model answer prompts, and a judge compare the answers: nodes of the chain.

A model's answers are one node, keyed by the model, the prompts and how they are drawn; the verdicts
on M_t against M_{t-1}, or against S, another, keyed by the answers of both and by the judge. Both
are in the cache, which runs share, and the run has its own copies.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sdpo.chain.context import Context
from sdpo.chain.node import Cached, Errand, Expansion, Find, Identity, Made, Node, Part
from sdpo.chain.step_models import model_of
from sdpo.chain.win_prompts import prompt_parts, prompts_digest, prompts_table, prompts_title
from sdpo.events import WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.inputs.judges import LocatedJudge, locate_judge
from sdpo.model_names import ModelName
from sdpo.processes.judging_specs import CompletionsSpec, JudgeSpec, ToJudge
from sdpo.store.kl_cache import KEY_FILE, NOT_CACHED, cached_fault
from sdpo.store.plan_file import read_plan
from sdpo.store.win_rates import COMPLETIONS, PREFIX, VERDICTS, WinOutputs, answers_so_far
from sdpo.system.files import file_digest, publish_file, write_json
from sdpo.system.json_values import Json
from sdpo.system.locks import hold

COMPLETIONS_VERSION = 2
"""This version is raised when a change of the project's code changes answers."""


def win_rates(context: Context, models: Sequence[int] | None = None) -> list[Part]:
    """Return an expansion of all win rates; by default of every model of the plan.

    Each of ``models`` is compared with the one before it and with S, where these are among them.
    """
    if not context.config.evaluation.win_rate.is_on:
        return []

    def expand() -> list[Part]:
        numbers = list(models) if models is not None else _of_plan(context)
        compared = [
            (number, other)
            for number in numbers
            for other in dict.fromkeys((number - 1, 0))
            if other in numbers and other != number
        ]
        first = prompt_parts(context) if compared else None
        if first is None:
            return []
        if any(isinstance(part, Cached) for part in first):  # the rest depends on what is missing
            return first
        asked = sorted({number for pair in compared for number in pair})
        return [
            *first,
            *(
                Expansion(
                    title=f"answers of {ModelName(number)}",
                    expand=lambda number=number: [_answers(context, number)],  # type: ignore[misc]
                )
                for number in asked
            ),
            Expansion(title="judge the answers", expand=lambda: _judged(context, compared)),
        ]

    return [Expansion(expand=expand, rule="every model over the one before it and over S")]


def _of_plan(context: Context) -> list[int]:
    steps = [step.step for step in read_plan(context.run).steps]
    return [0, *steps[: context.last_step]]


def _answers(context: Context, number: int) -> Node:
    """Return the node of what M_number answers."""
    name = ModelName(number)
    key = digest_of(_answers_identity(context, number, of_model=False))[:8]
    target = context.run.evaluations / str(name) / f"answers-{key}.parquet"

    def identity() -> Identity:
        return _answers_identity(context, number)

    def make(_find: Find) -> Made:
        out = _answers_folder(context, number)
        _ensure_answers(context, number, out)
        with publish_file(target) as temporary:
            shutil.copyfile(out / COMPLETIONS, temporary)
        return Made({"cached": out.name, "model": str(name)}, [target])

    return Node(
        name=f"answers-{name}-{key}",
        inputs=("plan", "tokens", f"step-{number}"),
        identity=identity,
        make=make,
        is_view=True,
    )


def _answers_identity(context: Context, number: int, *, of_model: bool = True) -> dict[str, Json]:
    config, win = context.config, context.config.evaluation.win_rate
    launch = config.launch
    threads: dict[str, Json] = {"threads": launch.threads} if launch.device == "cpu" else {}
    return {
        "completions_version": COMPLETIONS_VERSION,
        **({"model": model_of(context, number).digest} if of_model else {}),
        "tokenizer": context.resolved.inputs["tokenizer"],
        "prompts": prompts_digest(context),
        **win.model_dump(include={"samples", "max_new_tokens", "temperature", "seed"}),
        "precision": config.training.precision,
        "attention": config.model.attention,
        "device": launch.device,
        **threads,
    }


def _answers_folder(context: Context, number: int) -> Path:
    key = digest_of(_answers_identity(context, number))[:32]
    return context.cache / "completions" / key


def _ensure_answers(context: Context, number: int, out: Path) -> None:
    """Make sure that the answers are in the cache, and whole."""
    if not cached_fault(out):
        return
    config, model = context.config, model_of(context, number)
    lock = out.with_name(f".{out.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    what = f"the answers of {model.name}"
    with hold(lock, what=what, wait=True, listen=context.listen) as handle:
        if fault := cached_fault(out):
            if fault != NOT_CACHED:
                _clear(context, out, fault)
            with prompts_table(context) as prompts:
                spec = CompletionsSpec(
                    name=f"answers-{model.name}",
                    run=context.run.path,
                    model=config.model,
                    launch=config.launch.of_whole_models,
                    policy=model,
                    base=context.resolved.model,
                    prompts=prompts,
                    bf16=config.training.precision == "bf16",
                    micro_batch_tokens=config.training.micro_batch_tokens,
                    win_rate=config.evaluation.win_rate,
                    out=out,
                )
                context.stage(spec, handle)
            files = {COMPLETIONS: file_digest(out / COMPLETIONS)}
            identity = _answers_identity(context, number)
            write_json(out / KEY_FILE, {"identity": identity, "files": files})
            for path in answers_so_far(out):
                path.unlink()
        lock.unlink(missing_ok=True)


def _clear(context: Context, out: Path, fault: str) -> None:
    message = f"{out} in the cache is damaged, {fault}: it is made again"
    context.listen(WarningEvent(message=message))
    shutil.rmtree(out)


def _judged(context: Context, compared: Sequence[tuple[int, int]]) -> list[Part]:
    """Return a node for each comparison of two models, and the errand that renews their cards."""
    win = context.config.evaluation.win_rate
    judge = context.resolved.judge or locate_judge(
        win.judge, where="evaluation.win_rate.judge", cache=context.cache, is_asked=False
    )
    nodes: list[Node] = []
    for number, other in compared:
        nodes.append(_node(context, judge, number, other, compared, nodes))

    def settle() -> None:
        for number in sorted({number for number, _ in compared}):
            context.settle(f"step-{number}")

    return [*nodes, Errand(do=settle)]


def _verdicts_identity(
    context: Context, judge: LocatedJudge, number: int, other: int
) -> dict[str, Json]:
    first, second = (_answers_folder(context, each).name for each in (number, other))
    return {"judge": dict(judge.identity), "first": first, "second": second}


def _node(
    context: Context,
    judge: LocatedJudge,
    number: int,
    other: int,
    compared: Sequence[tuple[int, int]],
    together: list[Node],
) -> Node:
    """Return the node of M_number against M_other; ``together`` are those of all comparisons."""
    win = context.config.evaluation.win_rate
    name, against = ModelName(number), ModelName(other)
    asked = digest_of([_answers_identity(context, number, of_model=False), dict(judge.identity)])[
        :8
    ]
    target = context.run.evaluations / str(name) / f"{PREFIX}{against}-{asked}.parquet"

    def identity() -> Identity:
        return _verdicts_identity(context, judge, number, other)

    def make(find: Find) -> Made:
        # One load of the judge serves whatever is not there yet.
        missing = [
            pair
            for pair, node in zip(compared, together, strict=True)
            if pair == (number, other) or find(node).record is None
        ]
        _ensure_judged(context, judge, missing)
        out = _verdicts_folder(context, judge, number, other)
        with publish_file(target) as temporary:
            shutil.copyfile(out / VERDICTS, temporary)
        outputs = WinOutputs(
            cached=out.name,
            model=str(name),
            other=str(against),
            judge=judge.title,
            pairwise=judge.config.is_pairwise,
            asked=asked,
            prompt_set=prompts_title(context),
            **win.model_dump(include={"samples", "max_new_tokens", "temperature", "seed"}),
        )
        return Made(outputs.model_dump(mode="json"), [target])

    return Node(
        name=f"{PREFIX}{name}-{against}-{asked}",
        inputs=(f"step-{number}", f"step-{other}"),
        identity=identity,
        make=make,
        is_view=True,
    )


def _verdicts_folder(context: Context, judge: LocatedJudge, number: int, other: int) -> Path:
    key = digest_of(_verdicts_identity(context, judge, number, other))[:32]
    return context.cache / "win_rates" / key


def _ensure_judged(
    context: Context, judge: LocatedJudge, compared: Sequence[tuple[int, int]]
) -> None:
    """Make sure that the verdicts on these pairs of models are in the cache, and whole."""
    todo = [
        ToJudge(
            names=f"{ModelName(number)} and {ModelName(other)}",
            first=_answers_folder(context, number) / COMPLETIONS,
            second=_answers_folder(context, other) / COMPLETIONS,
            identity=_verdicts_identity(context, judge, number, other),
            out=_verdicts_folder(context, judge, number, other),
        )
        for number, other in compared
    ]
    if not any(cached_fault(each.out) for each in todo):
        return
    kept = context.cache / "verdicts" / judge.key
    # An endpoint's words are kept in one file, which one process at a time adds to.
    lock = kept.with_name(f".{judge.key}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with hold(lock, what="the judge's verdicts", wait=True, listen=context.listen) as handle:
        missing = [(each, fault) for each in todo if (fault := cached_fault(each.out))]
        for each, fault in missing:
            if fault != NOT_CACHED:
                _clear(context, each.out, fault)
        for number in sorted({number for pair in compared for number in pair} if missing else ()):
            _ensure_answers(context, number, _answers_folder(context, number))
        if missing:
            context.stage(
                JudgeSpec(
                    name="judge",
                    run=context.run.path,
                    model=context.config.model,
                    launch=context.config.launch.alone,
                    judge=judge,
                    todo=[each for each, _ in missing],
                    kept=kept,
                ),
                handle,
            )
        lock.unlink(missing_ok=True)
