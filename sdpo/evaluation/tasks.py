"""Load the tasks that a recipe's suites stand for, and tell what their results depend on."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sdpo.errors import ConfigError, UserError
from sdpo.evaluation.task_names import TaskFiles, check_known
from sdpo.identity.canonical import digest_of
from sdpo.processes.judging_specs import Asked
from sdpo.store.evaluations import GroupFacts, SuiteFacts, Suites, TaskFacts
from sdpo.system.files import file_digest

H4 = (
    ("arc_challenge", 25, "acc_norm"),
    ("hellaswag", 10, "acc_norm"),
    ("mmlu", 5, "acc"),
    ("truthfulqa_mc2", 0, "acc"),
)
"""The suite of the sDPO paper (arXiv 2403.19270, section 4.1): task, examples, metric."""
_BUILDERS = {"json", "csv", "parquet", "arrow", "text", "pandas", "xml"}
"""These names in the place of a dataset read files, and nothing of the hub."""
_OF_THE_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task or group is asked for, with so many examples (None: its own number) and a metric."""

    name: str
    shots: int | None = None
    metric: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks of the harness by name, with their facts."""

    tasks: dict[str, Any]
    suites: Suites


def wanted_of(names: Iterable[str]) -> dict[str, list[Wanted]]:
    """Return what each name in a recipe asks for: one task or group, or a suite of several."""
    found: dict[str, list[Wanted]] = {}
    for given in names:
        name, at, shots = given.partition("@")
        if name == "h4" and not at:
            found[given] = [Wanted(*each) for each in H4]
        else:
            found[given] = [Wanted(name, int(shots) if at else None)]
    return found


def load_tasks(asked: Asked) -> Loaded:
    """Load every task that is asked for, and its data.

    Raises:
        ConfigError: a name that no task has, one task asked for in two ways, a number of examples
            that the task does not take.
        UserError: data is not there, or a task would run what a model writes.
    """
    wanted = wanted_of(asked.names)
    if asked.task_files:
        os.chdir(asked.task_files)  # relative paths in the files start there
    with _reading() as read:
        loaded = _load(wanted, asked.task_files)
        tasks: dict[str, TaskFacts] = {}
        groups: list[GroupFacts] = []
        for members in wanted.values():
            for each in members:
                leaves = _leaves(loaded, each.name)
                for name in leaves:
                    task = loaded["tasks"][name]
                    _prepare(task, each, asked)
                    facts = _facts(task, each, asked)
                    if tasks.setdefault(name, facts) != facts:
                        raise ConfigError(
                            f"evaluation.suites asks for {name} in two ways, with "
                            f"{tasks[name].shots} and with {facts.shots} examples or by other "
                            "metrics: leave one out"
                        )
                if each.name not in loaded["tasks"]:
                    groups.append(_group(loaded, each, leaves, tasks))
    suites = [
        SuiteFacts(name=name, members=[each.name for each in members])
        for name, members in wanted.items()
        if len(members) > 1
    ]
    told = Suites(tasks=list(tasks.values()), groups=groups, suites=suites, files=read())
    return Loaded({name: loaded["tasks"][name] for name in tasks}, told)


def _load(wanted: dict[str, list[Wanted]], own: str) -> Any:
    """Return what the harness makes of the names: tasks, and the groups that they are in."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    names = [each.name for members in wanted.values() for each in members]
    mine = TaskFiles.in_folder(Path(own)) if own else TaskFiles(Path())
    paths = [Path(own)] if own else []
    if not set(names) <= set(mine.names):
        theirs = TaskFiles.in_folder(Path(lm_eval.tasks.__file__).parent)
        check_known(names, sorted({*mine.names, *theirs.names}))
        paths = [*theirs.folders([name for name in names if name not in mine.names]), *paths]
    manager = TaskManager(include_path=paths, include_defaults=False)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "of": {}}
    for name in dict.fromkeys(names):
        with _explained(name, manager):
            found = manager.load([name])
        loaded["tasks"] |= {n: t for n, t in found["tasks"].items() if n not in loaded["tasks"]}
        loaded["groups"] |= found.get("groups", {})
        loaded["of"][name] = list(found["tasks"])
    return loaded


@contextmanager
def _explained(name: str, manager: Any) -> Iterator[None]:
    """Say of whatever the harness raises about a task which task it is, and what helps."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a task file may raise anything
        entry = manager.task_index.get(name)
        data = str((entry.cfg or {}).get("dataset_path") or "") if entry else ""
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        local = data in _BUILDERS or Path(data).exists() or not data
        # A group's data is its members', and the error says whose.
        if not local or (entry is not None and _is_of_hub(error)):
            offline = next((f"{v} is set" for v in _OFFLINE if os.environ.get(v, "0") != "0"), "")
            raise UserError(
                f"the task {name} reads {data or 'its data'} from the Hugging Face hub, and it "
                f"cannot be had here ({offline or 'the hub cannot be reached'}; {said}): load it "
                "where there is a connection and take that HF_HOME along, or name a task file of "
                "your own that reads local files (evaluation.task_files)"
            ) from error
        raise UserError(f"the task {name} cannot be loaded: {said}") from error


def _is_of_hub(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, is about the hub or the network."""
    while error is not None:
        kind = type(error)
        of_hub = kind.__module__.partition(".")[0] in ("huggingface_hub", "httpx", "requests")
        if of_hub or kind.__name__ in ("OfflineModeIsEnabled", "DatasetNotFoundError"):
            return True
        if isinstance(error, ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _leaves(loaded: Any, name: str) -> list[str]:
    return [name] if name in loaded["tasks"] else list(loaded["of"][name])


def _prepare(task: Any, wanted: Wanted, asked: Asked) -> None:
    """Set examples and seed of a task as the harness does (``simple_evaluate``)."""
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"the task {name} runs code that a model writes: it is not supported")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"the task {name} shows pictures or plays sounds: it is not supported")
    own = task.get_config("num_fewshot")
    if wanted.shots is None:
        if own is None:
            task.set_config(key="num_fewshot", value=0)
    elif own == 0 and wanted.shots:
        raise ConfigError(
            f"evaluation.suites: {wanted.name}@{wanted.shots}: {name} has no examples by its own "
            "configuration, and the harness would leave the number out: write the name alone"
        )
    elif own != 0:
        task.set_config(key="num_fewshot", value=wanted.shots)
    task.set_fewshot_seed(seed=asked.seed)
    _note_data(task.config.dataset_kwargs)


def _note_data(value: Any) -> None:
    """Note the data files of a task: where they were read before, nobody opens them now."""
    if isinstance(value, str) and _opened is not None and Path(value).is_file():
        _opened.add(str(Path(value).absolute()))
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _note_data(each)


def _facts(task: Any, wanted: Wanted, asked: Asked) -> TaskFacts:
    better = {str(name): bool(value) for name, value in task.higher_is_better().items()}
    metric = wanted.metric or next(iter(better), "")
    if metric not in better:
        raise ConfigError(f"the task {task.task_name} has no metric {metric}: {', '.join(better)}")
    shots = int(task.get_config("num_fewshot") or 0)
    documents = len(task.eval_docs)
    used = min(documents, asked.limit) if asked.limit else documents
    config = {k: v for k, v in task.dump_config().items() if k != "metadata"}
    return TaskFacts(
        name=task.task_name,
        version=str(task.VERSION),
        config=hashlib.sha256(_plain(config).encode()).hexdigest(),
        data=_data_digest(task, used, with_examples=shots > 0),
        functions=digest_of(sorted(_sources(task, asked.task_files).values())),
        kind=str(task.OUTPUT_TYPE),
        shots=shots,
        documents=used,
        metric=metric,
        better=better,
    )


def _group(
    loaded: Any, wanted: Wanted, leaves: list[str], tasks: dict[str, TaskFacts]
) -> GroupFacts:
    """Return how the harness puts a group's number together; tags are plain means of tasks."""
    group = loaded["groups"].get(wanted.name)
    told = (group.aggregate_metric_list if group else None) or []
    metric = wanted.metric or (told[0].metric if told else tasks[leaves[0]].metric)
    weighted = next((bool(each.weight_by_size) for each in told if each.metric == metric), False)
    return GroupFacts(name=wanted.name, tasks=leaves, metric=metric, weighted=weighted)


def _plain(value: Any) -> str:
    """Return JSON of what a configuration or document holds; functions by their names."""

    def other(item: Any) -> Any:
        if callable(item):
            return getattr(item, "__qualname__", type(item).__name__)
        if is_dataclass(item):
            return {each.name: getattr(item, each.name) for each in fields(item)}
        if isinstance(item, bytes | bytearray):
            return hashlib.sha256(item).hexdigest()
        return item.tolist() if hasattr(item, "tolist") else str(item)

    return json.dumps(value, default=other, sort_keys=True, ensure_ascii=False)


def _data_digest(task: Any, used: int, *, with_examples: bool) -> str:
    total = hashlib.sha256()
    for document in islice(task.eval_docs, used):
        total.update(_plain(document).encode() + b"\n")
    if with_examples:
        total.update(b"examples\n")
        for document in task.fewshot_docs():
            total.update(_plain(document).encode() + b"\n")
    return total.hexdigest()


def _sources(task: Any, own: str) -> dict[str, str]:
    """Return the digests of the files that the functions of a task are in.

    Where one is in the folder of own task files, of all Python files there: one may import another.
    """
    paths: set[Path] = set()
    for function in _functions([vars(task.config), type(task)], depth=0):
        module = sys.modules.get(getattr(function, "__module__", "") or "")
        code = getattr(function, "__code__", None)
        name = code.co_filename if code else getattr(module, "__file__", None)
        if name and Path(name).is_file():
            paths.add(Path(name).resolve())
    if own and any(path.is_relative_to(Path(own).resolve()) for path in paths):
        paths |= set(Path(own).resolve().rglob("*.py"))
    return {str(path): file_digest(path) for path in paths}


def _functions(value: Any, *, depth: int) -> Iterator[Callable[..., Any]]:
    if callable(value):
        yield value
    elif depth < 6:
        if is_dataclass(value):
            value = [getattr(value, each.name) for each in fields(value)]
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(inner, list | tuple) or isinstance(value, dict):
            for each in inner:
                yield from _functions(each, depth=depth + 1)


_opened: set[str] | None = None


@contextmanager
def _reading() -> Iterator[Callable[[], dict[str, str]]]:
    """Within it, note the files that Python opens to read; those of libraries do not count.

    Yields a function that returns their digests: what tasks are made from, whoever reads it.
    """
    global _opened  # noqa: PLW0603 - an audit hook cannot be taken away again
    if _opened is None:
        sys.addaudithook(_note)
    _opened = set()
    noted = _opened

    def digests() -> dict[str, str]:
        import datasets

        # What the datasets library makes of files follows from them.
        made = [sys.prefix, datasets.config.HF_DATASETS_CACHE, *filter(None, sys.path)]
        others = [Path(folder).resolve() for folder in (*made, *_OF_THE_SYSTEM)]
        paths = sorted({Path(name).resolve() for name in noted})
        return {
            str(path): file_digest(path)
            for path in paths
            if path.is_file() and not any(path.is_relative_to(each) for each in others)
        }

    try:
        yield digests
    finally:
        _opened = set()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or _opened is None:
        return
    path, mode = arguments[0], arguments[1]
    is_read = mode is None or (isinstance(mode, str) and "r" in mode and "+" not in mode)
    if is_read and isinstance(path, str):
        _opened.add(os.path.abspath(path))  # noqa: PTH100 - the folder may change later
