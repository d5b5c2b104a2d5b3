"""Write the model card and the lineage file of every published model."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from sdpo.identity.adapter_folder import FULL, is_adapter, recorded_base
from sdpo.identity.model_folder import read_config
from sdpo.objectives import objective_facts, settings_of
from sdpo.store.evaluated import Evaluation, read_evaluations
from sdpo.store.lineage_file import LineageEntry, LineageFile
from sdpo.store.records import StepRecord
from sdpo.store.run_folder import RunFolder
from sdpo.store.win_rates import read_verdicts, won_by
from sdpo.system.files import json_text, write_text
from sdpo.system.json_values import JsonObject, number_of

CARD_FILES = ("README.md", "lineage.json")
_PRECISION = ", fp32. Step "
"""The card of a published model says this of its precision."""


_LIBRARIES = ("library_name: peft", "library_name: transformers")
_MERGED = re.compile(r"It is a LoRA adapter.*?\n(?=\n)", re.DOTALL)
"""The card of an adapter says this of it."""


def lineage(run: RunFolder, record: StepRecord) -> list[LineageEntry]:
    """Return how the model of ``record`` was made: one entry per step since S, oldest first.

    A step's guide comes before it."""
    step = record.step
    nodes = [f"{kind}-{number}" for number in range(step) for kind in ("guide", "step")]
    if not is_guide(record):
        nodes.append(f"guide-{step}")
    return [_entry(found) for found in [*map(run.find_step, nodes), record] if found]


def is_guide(record: StepRecord) -> bool:
    """Return whether the record is that of a guide, which a step has for its reference."""
    return record.name.startswith("guide-")


def _entry(record: StepRecord) -> LineageEntry:
    is_aligned = record.kind == "preference"
    return LineageEntry(
        step=record.step,
        name=record.name or f"M_{record.step}",
        kind=record.kind,
        objective=str(record.training["objective"]) if is_aligned else "sft",
        models=record.models,
        inputs=record.inputs,
        outputs=record.outputs,
        identity=record.identity,
        identity_digest=record.identity_digest,
    )


def write_card(run: RunFolder, record: StepRecord, *, name: str, folder: Path) -> None:
    """Write ``README.md`` and ``lineage.json`` into the model ``folder`` of ``record``."""
    for file, text in card_files(run, record, name=name, folder=folder).items():
        write_text(folder / file, text)


def refresh_card(run: RunFolder, record: StepRecord, *, name: str, folder: Path) -> None:
    """Write those of the two files that are missing or not as they would be now."""
    for file, text in card_files(run, record, name=name, folder=folder).items():
        path = folder / file
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)


def card_files(run: RunFolder, record: StepRecord, *, name: str, folder: Path) -> dict[str, str]:
    """Return ``README.md`` and ``lineage.json`` of the model of ``record``, as they should be."""
    chain = lineage(run, record)
    content = run.read_run() if run.run_file.is_file() else None
    called = content.name if content and content.name else run.name
    inputs = content.inputs if content else {}
    facts = LineageFile(run=called, model=name, inputs=inputs, steps=chain)
    index = "" if is_guide(record) else _model_index(run, record.step, f"{called}-{name}")
    card = _card(called, record, chain, name=name, folder=folder, index=index)
    return {
        "lineage.json": json_text(facts.as_json()),
        "README.md": card + _template_given(content.config if content else {}),
    }


def exported(files: Mapping[str, str], *, dtype: str, model: str) -> dict[str, str]:
    """Return the two files for a copy of the model in another precision.

    They name that precision, and the digest ``model`` of the copy's own tensors, by which it can be
    checked."""
    card = files["README.md"].replace(_PRECISION, f", {dtype}. Step ", 1)
    card = _MERGED.sub("Its adapter was merged into its base.\n", card.replace(*_LIBRARIES, 1))
    facts = json.loads(files["lineage.json"])
    copy = {"dtype": dtype, "model": model, "card": hashlib.sha256(card.encode()).hexdigest()}
    return {"lineage.json": json_text({**facts, "export": copy}), "README.md": card}


def _model_index(run: RunFolder, step: int, name: str) -> str:
    """Return what M_step scored on suites in the hub's metadata format; empty: nothing."""
    results: list[dict[str, object]] = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": each.facts.name, "type": each.facts.name},
            "metrics": [
                {"type": key.partition(",")[0], "value": value, "name": _how_scored(each, key)}
                for key, value in each.summary.metrics.items()
                if value is not None
            ],
        }
        for each in read_evaluations(run, checked=False)
        if each.model == step
    ]
    results += _win_rates(run, step)
    if not results:
        return ""
    index = [{"name": name, "results": results}]
    return yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)


def _win_rates(run: RunFolder, step: int) -> list[dict[str, object]]:
    """Return how often the answers of M_step won, by whose verdict."""
    won = [won_by(each) for each in read_verdicts(run, checked=False) if each.model == step]
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {
                "name": each.verdicts.outputs.prompt_set or "reserved prompts of the run",
                "type": "prompts" if each.verdicts.outputs.prompt_set else "reserved-prompts",
            },
            "metrics": [
                {
                    "type": kind,
                    "value": value,
                    "name": f"over {told.outputs.other}; judged by {told.outputs.judge}; "
                    f"{each.found.prompts} prompts",
                }
                for told in [each.verdicts]
                for kind, value in (
                    ("win_rate", each.found.rate),
                    ("length_controlled_win_rate", each.found.controlled),
                )
                if value is not None
            ],
        }
        for each in won
        if each
    ]


def _how_scored(evaluation: Evaluation, key: str) -> str:
    asked, facts = evaluation.asked, evaluation.facts
    said = [
        key,
        f"{facts.shots} examples",
        f"{evaluation.summary.documents} documents" if asked.limit else "all documents",
        *(["chat template"] if asked.chat_template else []),
    ]
    return "; ".join(said)


def _template_given(config: JsonObject) -> str:
    """Say what the chat template was given for all rows: whoever uses the model has to give it."""
    model = config.get("model")
    variables = model.get("chat_template_kwargs") if isinstance(model, Mapping) else None
    if not variables:
        return ""
    return (
        "\nIts chat template was given these variables in training, so give them to "
        f"`apply_chat_template` as well:\n\n```json\n{json.dumps(variables, ensure_ascii=False)}"
        "\n```\n"
    )


def _how(training: JsonObject) -> str:
    facts = objective_facts(str(training["objective"]))
    paper = f"arXiv {facts.paper}; " if facts.paper else ""
    return f"{facts.title} ({paper}{_listed(settings_of(training))}){_beside(training)}"


def _card(
    run: str,
    record: StepRecord,
    chain: list[LineageEntry],
    *,
    name: str,
    folder: Path,
    index: str,
) -> str:
    named = read_config(folder).get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) and named else []
    architecture = ", ".join(names or ["a language model"])
    training = record.training
    rows = "\n".join(_row(entry) for entry in chain)
    rate = number_of(training, "learning_rate")
    how = _how(training) if record.kind == "preference" else "supervised fine-tuning"
    return f"""---
{_LIBRARIES[0] if is_adapter(folder) else _LIBRARIES[1]}
tags: [sdpo, {"preference-optimization" if record.kind == "preference" else "sft"}]
{index}---

# {name} of run {run}

{architecture}{_PRECISION}{record.step}: {how}, learning rate {rate:g},
{record.optimizer_steps} optimizer steps. Made by stepwise DPO (arXiv 2403.19270): by default
every step's reference and initial target is the model of the step before.
{_of_adapter(folder)}
| model | objective | reference | target | partition | digest |
|---|---|---|---|---|---|
{rows}

Digests cover tensors and configuration, not files; `lineage.json` has them in full.
"""


def _of_adapter(folder: Path) -> str:
    """Say what an adapter is of, or nothing where the folder holds weights."""
    if not is_adapter(folder):
        return ""
    base = recorded_base(folder)
    held = "" if base.precision == FULL else f" Its linear layers are held in {base.precision}."
    return (
        "\nIt is a LoRA adapter over a base that stays as it is: base + adapter is the model, "
        f"exactly.\nThe base has the digest `{_short(base.digest)}`, and "
        f"`adapter_config.json` says where it was.{held}\n"
    )


def _row(entry: LineageEntry) -> str:
    inputs = entry.inputs
    cells = (
        entry.name,
        entry.objective,
        _model(entry, "reference"),
        _model(entry, "target" if "target" in inputs else "base"),
        f"`{_short(inputs.get('partition'))}`",
        f"`{_short(entry.outputs['model'])}`",
    )
    return f"| {' | '.join(cells)} |"


def _model(entry: LineageEntry, role: str) -> str:
    """Write a step's model as its digest, with its name where that is known."""
    digest = entry.inputs.get(role)
    name = entry.models[role].name if role in entry.models else ""
    if not digest or digest == "none":
        return "none"
    return f"{name} `{_short(digest)}`".strip()


def _beside(training: JsonObject) -> str:
    """Say what is added to the objective, if anything is."""
    alpha, weight = (
        number_of(training, name) if name in training else 0.0
        for name in ("rpo_alpha", "router_aux_loss")
    )
    nll = f" + {alpha:g} NLL of the chosen side per token (arXiv 2404.19733)" if alpha else ""
    routers = f" + {weight:g} load-balancing loss of the routers (arXiv 2101.03961)"
    return nll + (routers if weight else "")


def _listed(settings: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "no settings"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "-"
