"""Make the pages of a run's files and of what records, gamma, KL and metrics say, from the code."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs.site.markdown import code, escaped, table
from sdpo.stats import gamma_rows
from sdpo.stats.kl import Estimate, KlRow
from sdpo.store import records, run_status
from sdpo.store.run_paths import RunPaths

METRICS = {
    "step": "optimizer step, from 1",
    "loss": "mean loss of the global batch, with what `rpo_alpha` and `router_aux_loss` add",
    "learning_rate": "rate of this optimizer step",
    "epoch": "passes over the partition so far",
    "grad_norm": "gradient norm before clipping",
    "rewards/chosen": "mean beta * (policy - reference log-prob) of chosen answers, nats",
    "rewards/rejected": "the same of rejected answers",
    "rewards/margins": "chosen minus rejected reward",
    "rewards/accuracies": "share of pairs whose chosen reward is the larger one",
    "logps/chosen": "mean summed log-prob of chosen answers under the policy, nats",
    "logps/rejected": "the same of rejected answers",
    "nll_loss": "mean negative log-likelihood per token of chosen answers, where one is trained",
    "aux_loss": "load-balancing loss of routers, where it is trained",
    "log_odds_chosen": "log odds of chosen minus rejected answers, of objectives on odds",
    "log_odds_ratio": "log sigmoid of it",
    "odds_capped": "sides whose odds are capped",
}
"""Names of a line of ``metrics.jsonl``; those measured on the reserve begin with ``eval_``."""


def files() -> str:
    """Return the page of the paths of a run, from the class that gives them."""
    run = RunPaths(Path("runs/NAME"))
    rows = []
    for name, member in vars(RunPaths).items():
        if isinstance(member, property) and not name.startswith("_"):
            value = getattr(RunPaths, name).fget
            if value.__annotations__.get("return") is Path:
                rows.append((code(str(getattr(run, name))), _first(member.__doc__)))
    rows += [
        (code(str(run.step(1))), "Folder of step 1; `step-0` is the supervised stage."),
        (code(str(run.model(1))), "Model that step 1 published."),
        (code(str(run.record_path("step-1"))), "Record of step 1, written last."),
        (code(str(run.record_path("plan"))), "Record of a node that publishes no model."),
    ]
    return (
        "# Paths of a run\n\nWhat a run's folder looks like as a whole is in "
        "[the files of a run](../files.md).\n\n"
    ) + table(("Path", "What it is"), sorted(rows))


def record_page() -> str:
    """Return the page of records, ``gamma.json``, ``kl.json``, the status and metrics."""
    parts = [
        "# Records and metrics\n\nFields without a default are always there. What an earlier "
        "version did not write has its default.\n"
    ]
    for title, models in (
        ("Records", list(_models(records))),
        ("gamma.json", list(_models(gamma_rows))),
        ("kl.json", [KlRow, Estimate]),
        ("logs/status.json", [run_status.Word, run_status.By]),
    ):
        parts.append(f"## {title}\n")
        parts += [_model(model) for model in models]
    rows = [(code(name), escaped(said)) for name, said in METRICS.items()]
    parts.append(
        "## metrics.jsonl\n\nA JSON object a line, by the names of TRL; means over the pairs of a "
        "global batch. Evaluation on the\nreserve has the same names with `eval_` before them.\n\n"
        + table(("Name", "What it is"), rows)
    )
    return "\n".join(parts)


def _models(module: types.ModuleType) -> Iterator[type[BaseModel]]:
    for name, value in vars(module).items():
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and issubclass(value, BaseModel) and value.model_fields and not name.startswith("_"):
            yield value


def _model(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        default = "" if field.default is PydanticUndefined else code(repr(field.default))
        rows.append((code(name), _kind(field.annotation), default))
    said = escaped(" ".join((model.__doc__ or "").split()))
    return f"### {model.__name__}\n\n{said}\n\n{table(('Field', 'Type', 'Default'), rows)}"


def _kind(kind: object) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(code(str(value)) for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in inside)
    if origin in (list, tuple, set):
        return f"list of {_kind(inside[0])}"
    if origin is dict:
        return f"mapping of {_kind(inside[1])}"
    plain = {
        type(None): "null",
        str: "text",
        int: "whole number",
        float: "number",
        bool: "yes or no",
    }
    return plain.get(kind) or str(getattr(kind, "__name__", kind))  # type: ignore[call-overload]


def _first(doc: str | None) -> str:
    return escaped(" ".join((doc or "").split()).removeprefix("Return ").capitalize())
