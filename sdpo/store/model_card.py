"""The model card and lineage file that travel with every published model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpo.identity.model_folder import read_config
from sdpo.objectives import objective_facts, settings_of
from sdpo.store.run_folder import Record, RunFolder
from sdpo.system.files import json_text, write_text


def lineage(run: RunFolder, record: Record) -> list[dict[str, Any]]:
    """How the model of ``record`` came to be: one entry per step since S, oldest first, a step's
    guide before it."""
    step = record["step"]
    nodes = [f"{kind}-{number}" for number in range(step) for kind in ("guide", "step")]
    if not is_guide(record):
        nodes.append(f"guide-{step}")
    return [_entry(found) for found in [*map(run.read_record, nodes), record] if found]


def is_guide(record: Record) -> bool:
    """Whether the record is that of a guide, which a step has for its reference."""
    return str(record.get("name", "")).startswith("guide-")


def _entry(record: Record) -> dict[str, Any]:
    return {
        "step": record["step"],
        "name": record.get("name", f"M_{record['step']}"),
        "kind": record["kind"],
        "objective": record["training"]["objective"] if record["kind"] == "preference" else "sft",
        "models": record.get("models", {}),
        "inputs": record["inputs"],
        "outputs": record["outputs"],
        "identity": record["identity"],
        "identity_digest": record["identity_digest"],
    }


def write_card(run: RunFolder, record: Record, *, name: str, folder: Path) -> None:
    """Write ``README.md`` and ``lineage.json`` into the model ``folder`` of ``record``."""
    for file, text in card_files(run, record, name=name, folder=folder).items():
        write_text(folder / file, text)


def refresh_card(run: RunFolder, record: Record, *, name: str, folder: Path) -> None:
    """Write those of the two files that are not there, or not what they would be now."""
    for file, text in card_files(run, record, name=name, folder=folder).items():
        path = folder / file
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)


def card_files(run: RunFolder, record: Record, *, name: str, folder: Path) -> dict[str, str]:
    """``README.md`` and ``lineage.json`` of the model of ``record``, as they should be."""
    chain = lineage(run, record)
    content = run.read_run() if run.run_file.is_file() else {}
    called = str(content.get("name", run.name))
    facts = {"run": called, "model": name, "inputs": content.get("inputs", {}), "steps": chain}
    card = _card(called, record, chain, name=name, folder=folder)
    return {"lineage.json": json_text(facts), "README.md": card + _template_given(content)}


def _template_given(content: Mapping[str, Any]) -> str:
    """What the chat template was given for all rows, which whoever uses the model has to give."""
    model = content.get("config", {}).get("model", {})
    variables = model.get("chat_template_kwargs") if isinstance(model, Mapping) else None
    if not variables:
        return ""
    return (
        "\nIts chat template was given these variables in training, so give them to "
        f"`apply_chat_template` as well:\n\n```json\n{json.dumps(variables, ensure_ascii=False)}"
        "\n```\n"
    )


def _how(training: dict[str, Any]) -> str:
    facts = objective_facts(training["objective"])
    paper = f"arXiv {facts.paper}; " if facts.paper else ""
    return f"{facts.title} ({paper}{_listed(settings_of(training))}){_beside(training)}"


def _card(run: str, record: Record, chain: list[dict[str, Any]], *, name: str, folder: Path) -> str:
    architecture = ", ".join(read_config(folder).get("architectures") or ["a language model"])
    training = record["training"]
    rows = "\n".join(_row(entry) for entry in chain)
    how = _how(training) if record["kind"] == "preference" else "supervised fine-tuning"
    return f"""---
library_name: transformers
tags: [sdpo, {"preference-optimization" if record["kind"] == "preference" else "sft"}]
---

# {name} of run {run}

{architecture}, fp32. Step {record["step"]}: {how}, learning rate {training["learning_rate"]:g},
{record["optimizer_steps"]} optimizer steps. Made by stepwise DPO (arXiv 2403.19270): by default
every step's reference and initial target is the model of the step before.

| model | objective | reference | target | partition | digest |
|---|---|---|---|---|---|
{rows}

Digests cover tensors and configuration, not files; `lineage.json` has them in full.
"""


def _row(entry: dict[str, Any]) -> str:
    inputs = entry["inputs"]
    cells = (
        entry["name"],
        entry["objective"],
        _model(entry, "reference"),
        _model(entry, "target" if "target" in inputs else "base"),
        f"`{_short(inputs.get('partition'))}`",
        f"`{_short(entry['outputs']['model'])}`",
    )
    return f"| {' | '.join(cells)} |"


def _model(entry: dict[str, Any], role: str) -> str:
    """A model of a step by name, where it is known, and digest."""
    digest = entry["inputs"].get(role)
    name = entry["models"].get(role, {}).get("name", "")
    if not digest or digest == "none":
        return "none"
    return f"{name} `{_short(digest)}`".strip()


def _beside(training: dict[str, Any]) -> str:
    """What is added to the objective, if anything is."""
    alpha, weight = training.get("rpo_alpha"), training.get("router_aux_loss")
    nll = f" + {alpha:g} NLL of the chosen side per token (arXiv 2404.19733)" if alpha else ""
    routers = f" + {weight:g} load-balancing loss of the routers (arXiv 2101.03961)"
    return nll + (routers if weight else "")


def _listed(settings: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "no settings"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "-"
