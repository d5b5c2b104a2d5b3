"""Runs of tiny recipes: where they are, how they are started, what is read of them.

Runs are real: the real chain, real child processes, a real model that trains. Only the start of a
stage is quicker than usual (see :mod:`forked_stages`).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from forked_stages import forked_stages

from sdpo.chain.run_chain import ChainResult, run_chain
from sdpo.config.load import make_config
from sdpo.events import Event
from sdpo.hooks import Host
from sdpo.store.run_folder import RunFolder

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """The demo's model folder and data files."""

    model: Path
    questions: Path
    requests: Path
    dialogues: Path


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """``base`` with the groups of ``changes`` laid over it, key by key."""
    values = dict(base)
    for key, value in changes.items():
        old = values.get(key)
        values[key] = merged(old, value) if isinstance(old, Mapping) else value
    return values


@dataclass(frozen=True, slots=True)
class Bench:
    """A place for runs: its recipe, its runs and its caches."""

    folder: Path
    recipe: Values

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.folder / "runs"

    def values(self, changes: Mapping[str, Any] = {}) -> Values:
        """The recipe with changes, its runs here."""
        return merged(merged(self.recipe, changes), {"store": {"runs_dir": str(self.runs)}})

    def write(self, changes: Mapping[str, Any] = {}, *, name: str = "recipe.yaml") -> str:
        """The recipe as a file, for the command line."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(self.values(changes)), encoding="utf-8")
        return str(path)

    def run(self, changes: Mapping[str, Any] = {}, *, overrides: Sequence[str] = ()) -> "Outcome":
        """Run the chain to its end."""
        config = make_config(self.values(changes), overrides=overrides)
        events: list[Event] = []
        with forked_stages():
            result = run_chain(config, host=Host(listen=events.append))
        return Outcome(result, events)

    def copy_to(self, folder: Path) -> "Bench":
        """The same recipe with copies of the runs and caches."""
        for name in ("runs", "cache"):
            shutil.copytree(self.folder / name, folder / name)
        return Bench(folder, self.recipe)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished call of the chain and what it said meanwhile."""

    result: ChainResult
    events: list[Event] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.result.run

    @property
    def run(self) -> RunFolder:
        """The run's folder with its paths."""
        return RunFolder(self.result.run)

    def record(self, node: str) -> Values:
        """Record of a node that is complete."""
        record = self.run.read_record(node)
        assert record is not None, node
        return record

    def json(self, name: str) -> Any:
        """A JSON file of the run."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def metrics(self, step: int) -> list[Values]:
        """Lines of a step's ``metrics.jsonl``."""
        text = (self.run.step(step) / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def reason(self, node: str) -> str:
        """Why a node had to be done."""
        said = [e for e in self.events if e["event"] == "node" and e["node"] == node]
        return str(said[0]["reason"])
