"""Write the card that a model has on the hub: its own, with the hub's metadata and what was found.

The metadata's keys are those of the hub's model cards (huggingface_hub.ModelCardData).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdpo.errors import UserError
from sdpo.identity.adapter_folder import ADAPTER, is_adapter
from sdpo.report.load import load_run
from sdpo.report.numbers import measure_run
from sdpo.stats.gamma_rows import GammaRow
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import json_text, write_text
from sdpo.system.json_values import Json

_FENCE = "---\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFacts:
    """A person says this of a model that goes to the hub, as far as the run does not.

    repo: its name there. base_model: the name there of the model that the run started from, empty
    where the recipe names it. licence: the hub's name of the licence, as `apache-2.0`.
    """

    repo: str
    base_model: str = ""
    licence: str = ""


def prepare_for_hub(run: RunFolder, step: int, folder: Path, facts: HubFacts) -> None:
    """Rewrite what in ``folder``, a copy of M_step, is of this machine alone, and its card.

    The card gets the hub's metadata, gamma on the reserve and how to load the model; the lineage
    the card's digest; an adapter the name of its base on the hub.

    Raises:
        UserError: an adapter's base is a folder of this machine, and no name on the hub is given.
    """
    config = run.read_run().config
    base = base_on_hub(run, facts, adapter=is_adapter(folder))
    if is_adapter(folder):
        _name_base(folder, base, given=bool(facts.base_model), config=config)
    gamma = _gamma(run, step)
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split(_FENCE, 2)
    kept = yaml.safe_load(front)
    metadata: dict[str, Any] = {
        **_metadata(kept, config, base, facts, adapter=is_adapter(folder)),
        **_model_index(kept, gamma, name=f"{run.name}-M_{step}"),
    }
    metadata["tags"].append(lineage["steps"][-1]["objective"])
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    card = f"{_FENCE}{head}{_FENCE}{body}{_found(gamma)}{_usage(facts, adapter=is_adapter(folder))}"
    write_text(folder / "README.md", card)
    made = lineage["steps"][-1]["outputs"]["model"]
    copy = {"dtype": "float32", "model": made, **lineage.get("export", {})}
    copy |= {"card": hashlib.sha256(card.encode()).hexdigest(), "hub": facts.repo}
    write_text(folder / "lineage.json", json_text({**lineage, "export": copy}))


def base_on_hub(run: RunFolder, facts: HubFacts, *, adapter: bool) -> str:
    """Return the name on the hub of the model that the run started from; empty where it has none.

    Raises:
        UserError: it has none, and what goes there is an adapter, which is nothing without it.
    """
    base = facts.base_model or _hub_name(_group(run.read_run().config, "model").get("name_or_path"))
    if not base and adapter:
        raise UserError(
            "the adapter's base is a folder of this machine, where nobody else finds it: name what "
            "it is on the hub (--base-model ORG/NAME), or push merged weights (--merge)"
        )
    return base


def _group(config: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _hub_name(name: Json) -> str:
    """Return the name on the hub; empty where it is a path, which says nothing elsewhere."""
    is_name = isinstance(name, str) and name and not Path(name).is_absolute() and ":" not in name
    return str(name) if is_name else ""


def _name_base(folder: Path, base: str, *, given: bool, config: Mapping[str, Json]) -> None:
    path = folder / ADAPTER
    content = json.loads(path.read_text(encoding="utf-8"))
    revision = None if given else _group(config, "model").get("revision") or None
    changed = {**content, "base_model_name_or_path": base, "revision": revision}
    write_text(path, json_text(changed))


def _metadata(
    kept: Mapping[str, Json],
    config: Mapping[str, Json],
    base: str,
    facts: HubFacts,
    *,
    adapter: bool,
) -> dict[str, Json]:
    sources = _group(config, "data").get("sources")
    paths = (
        [each.get("path") for each in sources if isinstance(each, Mapping)]
        if (isinstance(sources, list))
        else []
    )
    datasets = list(dict.fromkeys(filter(None, map(_hub_name, paths))))
    tags = kept.get("tags")
    found: dict[str, Json] = {
        "library_name": kept["library_name"],
        "pipeline_tag": "text-generation",
        "tags": [*(tags if isinstance(tags, list) else []), "stepwise-dpo"],
    }
    if base:
        found |= {"base_model": base}
        found |= {"base_model_relation": "adapter" if adapter else "finetune"}
    if datasets:
        found["datasets"] = datasets
    if facts.licence:
        found["license"] = facts.licence
    return found


def _gamma(run: RunFolder, step: int) -> dict[int, GammaRow]:
    """Return gamma of M_0 to M_step on the reserve of all sources, by the model's number."""
    rows = measure_run(load_run(run.path)).reserve
    return {number: row for number, row in sorted(rows.items()) if number <= step}


def _model_index(
    kept: Mapping[str, Json], gamma: Mapping[int, GammaRow], *, name: str
) -> dict[str, Json]:
    index = kept.get("model-index")
    old = index[0].get("results") if isinstance(index, list) and index else None
    results = list(old) if isinstance(old, list) else []
    if gamma:
        row = gamma[max(gamma)]
        results.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": f"reserve, {row.pairs} pairs", "type": "sdpo-reserve"},
                "metrics": [
                    {
                        "type": "accuracy",
                        "value": row.ranking_accuracy,
                        "name": "share of pairs with log pi(chosen) > log pi(rejected)",
                    }
                ],
            }
        )
    return {"model-index": [{"name": name, "results": results}]} if results else {}


def _found(gamma: Mapping[int, GammaRow]) -> str:
    if not gamma:
        return ""
    rows = "\n".join(
        f"| M_{number} | {row.mean:.3f} | {row.mean_low:.3f} to {row.mean_high:.3f} | "
        f"{row.ranking_accuracy:.3f} |"
        for number, row in gamma.items()
    )
    return (
        "\n## Gamma\n\nOn pairs that no step trained on. Gamma is log pi(chosen) - log pi(rejected)"
        ", summed over a completion's\ntokens; accuracy is the share of pairs where it is above 0; "
        "intervals are of 95%.\n\n| model | mean gamma | interval | accuracy |\n|---|---|---|---|\n"
        f"{rows}\n"
    )


def _usage(facts: HubFacts, *, adapter: bool) -> str:
    module, name = (
        ("peft", "AutoPeftModelForCausalLM")
        if adapter
        else (*("transformers", "AutoModelForCausalLM"),)
    )
    return (
        f"\n## Use\n\n```python\nfrom {module} import {name}\n"
        "from transformers import AutoTokenizer\n\n"
        f'model = {name}.from_pretrained("{facts.repo}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{facts.repo}")\n```\n'
    )
