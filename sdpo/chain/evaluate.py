"""Judge the models of a run by suites of lm-evaluation-harness, as nodes of the chain.

A node is one model on one task, keyed by everything that its scores depend on. What is not there
yet of a model is scored by one stage (:mod:`sdpo.stages.evaluate`) into the cache, which runs
share; the node has the run's own copy and its record.
"""

import importlib.metadata
import re
import shutil
from collections.abc import Sequence

from sdpo.chain.context import Context
from sdpo.chain.node import Cached, Errand, Expansion, Find, Identity, Look, Made, Node, Part
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import template_uses_clock
from sdpo.errors import ConfigError
from sdpo.events import WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.model_names import ModelName
from sdpo.processes.judging_specs import Asked, EvaluateSpec, SuitesSpec, TaskToDo
from sdpo.processes.stage_results import SuitesResult
from sdpo.store.evaluations import (
    SCORES,
    Suites,
    TaskFacts,
    evaluation_fault,
    evaluation_folder,
    read_suites,
    read_summary,
    suites_path,
    write_suites,
)
from sdpo.store.plan_file import read_plan
from sdpo.system.files import publish_file
from sdpo.system.json_values import Json, JsonObject
from sdpo.system.locks import hold

EVALUATION_VERSION = 1
"""This version is raised when a change of the project's code changes scores."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def find_suites(context: Context) -> list[Part]:
    """Return the part that finds the tasks of the recipe's suites; none where it names none.

    It comes before anything is trained, so that a name which is wrong is told at once.
    """
    if not context.config.evaluation.suites:
        return []
    path = suites_path(context.cache, _question(context))

    def look() -> None:
        _check_template(context)

    def fault() -> str:
        found = read_suites(path)
        if found is None:
            return "not looked up yet"
        changed = found.changed()
        return f"{changed} was changed" if changed else ""

    def make(locks: Sequence[int]) -> None:
        spec = SuitesSpec(
            name="suites",
            run=context.run.path,
            model=context.config.model,
            launch=context.config.launch,
            asked=_asked(context),
        )
        write_suites(path, context.stage(spec, *locks).read(SuitesResult).suites)

    return [
        Look(look=look),
        Cached(name="suites", title="find tasks", fault=fault, make=make),
    ]


def _check_template(context: Context) -> None:
    """Refuse a chat template that is not there, or that would make other prompts every day.

    Raises:
        ConfigError: says which of the two, and what to do.
    """
    if not context.config.evaluation.chat_template:
        return
    remedy = "set evaluation.chat_template: false"
    if not context.resolved.has_template:
        raise ConfigError(f"evaluation.chat_template: the model has no chat template: {remedy}")
    if template_uses_clock(context):
        raise ConfigError(
            "evaluation.chat_template: the model's chat template prints the date, so that prompts "
            f"would be other ones every day: {remedy}, or give a template with a fixed date "
            "(model.chat_template)"
        )


def evaluations(context: Context, models: Sequence[int] | None = None) -> list[Part]:
    """Return an expansion for each model that is judged; by default every model of the plan."""
    if not context.config.evaluation.suites:
        return []

    def expand() -> list[Part]:
        numbers = models if models is not None else _of_plan(context)
        return [
            Expansion(
                title=f"evaluate {ModelName(number)}",
                expand=lambda number=number: _nodes(context, number),  # type: ignore[misc]
            )
            for number in numbers
        ]

    return [Expansion(expand=expand, rule="every model on every task of the suites")]


def _of_plan(context: Context) -> list[int]:
    steps = [step.step for step in read_plan(context.run).steps]
    return [0, *steps[: context.last_step]]


def _nodes(context: Context, number: int) -> list[Part]:
    """Return the nodes of M_number, one for each task, and the errand that renews its card."""
    suites = read_suites(suites_path(context.cache, _question(context)))
    if suites is None:
        return []
    nodes: list[Node] = []
    for facts in suites.tasks:
        nodes.append(_node(context, number, facts, suites, nodes))

    def settle() -> None:
        if number or context.config.supervised.enabled:
            context.settle(f"step-{number}")

    return [*nodes, Errand(do=settle)]


def _node(
    context: Context, number: int, facts: TaskFacts, suites: Suites, together: list[Node]
) -> Node:
    """Return the node of a model on a task; ``together`` are all nodes of the model."""
    name = ModelName(number)

    def identity() -> Identity:
        return _identity(context, number, facts)

    common = common_key(_identity(context, number, facts, of_model=False))
    slug = f"{_UNSAFE.sub('-', facts.name)}-{common}"
    target = context.run.evaluations / str(name) / f"{slug}.parquet"

    def make(find: Find) -> Made:
        out = evaluation_folder(context.cache, identity())
        missing = [
            each
            for each, node in zip(suites.tasks, together, strict=True)
            if each == facts or find(node).record is None
        ]
        _ensure_cached(context, number, missing)
        with publish_file(target) as temporary:
            shutil.copyfile(out / SCORES, temporary)
        outputs: dict[str, Json] = {
            "cached": out.name,
            "model": str(name),
            "common": common,
            "asked": _asked(context).model_dump(mode="json", exclude={"task_files"}),
            "facts": facts.model_dump(mode="json"),
            "groups": [group.model_dump(mode="json") for group in suites.groups],
            "suites": [suite.model_dump(mode="json") for suite in suites.suites],
            "summary": read_summary(out).model_dump(mode="json"),
        }
        return Made(outputs, [target])

    return Node(
        name=f"eval-{name}-{slug}",
        inputs=("suites", f"step-{number}"),
        identity=identity,
        make=make,
        is_view=True,
    )


def common_key(identity: JsonObject) -> str:
    """Return a short key of an identity without its model: scores with the same compare."""
    return digest_of(identity)[:8]


def _identity(
    context: Context, number: int, facts: TaskFacts, *, of_model: bool = True
) -> dict[str, Json]:
    config, asked = context.config, context.config.evaluation
    launch = config.launch
    # On a CPU the number of threads changes sums; a GPU's do not depend on it.
    threads: dict[str, Json] = {"threads": launch.threads} if launch.device == "cpu" else {}
    return {
        "evaluation_version": EVALUATION_VERSION,
        **({"model": model_of(context, number).digest} if of_model else {}),
        "tokenizer": context.resolved.inputs["tokenizer"],
        "task": facts.identity(),
        "harness": _harness_version(),
        "seed": asked.seed,
        "chat_template": asked.chat_template,
        "batch_size": asked.batch_size,
        "precision": config.training.precision,
        "attention": config.model.attention,
        "device": launch.device,
        **threads,
    }


def _ensure_cached(context: Context, number: int, tasks: Sequence[TaskFacts]) -> None:
    """Make sure that the scores of M_number on these tasks are in the cache, and whole."""
    config, model = context.config, model_of(context, number)
    todo = [
        TaskToDo(facts=facts, identity=identity, out=evaluation_folder(context.cache, identity))
        for facts in tasks
        for identity in [_identity(context, number, facts)]
    ]
    if not any(evaluation_fault(each.out) for each in todo):
        return
    # Another run may be judging the same model: then this one waits and finds what it scored.
    lock = context.cache / "evaluations" / f".{digest_of(model.digest)[:32]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    what = f"the evaluation of {model.name}"
    with hold(lock, what=what, wait=True, listen=context.listen) as handle:
        missing = [each for each in todo if (fault := evaluation_fault(each.out))]
        for each in missing:
            if (fault := evaluation_fault(each.out)) != "not evaluated yet":
                message = f"{each.out} in the cache is damaged, {fault}: it is scored again"
                context.listen(WarningEvent(message=message))
                shutil.rmtree(each.out)
        if missing:
            context.stage(
                EvaluateSpec(
                    name=f"evaluate-{model.name}",
                    run=context.run.path,
                    model=config.model,
                    launch=config.launch.of_whole_models,
                    policy=model,
                    base=context.resolved.model,
                    bf16=config.training.precision == "bf16",
                    asked=_asked(context),
                    tasks=missing,
                ),
                handle,
            )
        lock.unlink(missing_ok=True)


def _asked(context: Context) -> Asked:
    asked = context.config.evaluation
    return Asked(
        names=asked.suites,
        task_files=asked.task_files,
        limit=asked.limit,
        chat_template=asked.chat_template,
        batch_size=asked.batch_size,
        seed=asked.seed,
    )


def _question(context: Context) -> JsonObject:
    """Return what the tasks that are found depend on, but for the files that are read."""
    return _asked(context).model_dump(mode="json") | {
        "evaluation_version": EVALUATION_VERSION,
        "harness": _harness_version(),
    }


def _harness_version() -> str:
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        return ""  # a run that is verified where it is not installed; resolving refuses others
