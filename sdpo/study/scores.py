"""Take what suites and a judge said of a trial's model item by item, so that arms can be paired.

An item is a document of a suite, or a prompt that the model and S both answered. The mean of a
model's values over items is its score on the suite, or its win rate over S.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdpo.identity.canonical import digest_of
from sdpo.report.evaluations import Line, Score, load_evaluations, scored_documents
from sdpo.stats.bootstrap import Floats
from sdpo.stats.reserve_parts import part_of
from sdpo.store.run_folder import RunFolder
from sdpo.store.win_rates import Verdicts, read_verdicts

Kind = Literal["suite", "win_rate"]


@dataclass(frozen=True, slots=True, eq=False)
class ItemScores:
    """A model has ``values`` ``[n]`` on ``items`` ``[n]``, whose mean is its score.

    ``key`` is the same where models were asked alike, ``title`` says what by. Items of one of
    ``clusters`` ``[n]``, which are prompts or documents, are drawn together.
    """

    key: str
    title: str
    kind: Kind
    items: NDArray[np.str_]
    clusters: NDArray[np.str_]
    values: Floats

    def take(self, rows: np.ndarray) -> "ItemScores":
        """Return the items that ``rows``, a mask or an array of indices, names."""
        return replace(
            self, items=self.items[rows], clusters=self.clusters[rows], values=self.values[rows]
        )

    def reported(self) -> "ItemScores":
        """Return the items on which no setting was chosen: prompts of the selection part go."""
        if self.kind == "suite":
            return self
        return self.take(part_of(self.clusters) == "report")


def item_scores(run: RunFolder, *, model: int) -> list[ItemScores]:
    """Return the scores of M_``model`` of a run, on suites and over S.

    A suite whose number is no mean over documents is left out.

    Raises:
        IntegrityError: scores or verdicts are not those that were written.
    """
    lines = load_evaluations(run)
    of_suites = [
        found
        for line in lines
        for score in line.scores
        if score.model == model and (found := _of_suite(line, score))
    ]
    verdicts = (each for each in read_verdicts(run) if (each.model, each.other) == (model, 0))
    return [*of_suites, *map(_of_verdicts, verdicts)]


def _of_suite(line: Line, score: Score) -> ItemScores | None:
    found = scored_documents(score)
    if found is None:
        return None
    asked = digest_of([line.metric, sorted(m.evaluation.common for m in score.members)])[:8]
    how = f", {line.settings}" if line.settings else ""
    title = f"{line.name} ({line.metric}{how})"
    return ItemScores(
        f"suite:{line.name}:{asked}", title, "suite", found.keys, found.keys, found.values
    )


def _of_verdicts(verdicts: Verdicts) -> ItemScores:
    """Return what a model won over S; comparisons without a verdict in both orders are left out."""
    told, table = verdicts.outputs, pq.read_table(verdicts.table)
    forward, backward = (
        table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("forward", "backward")
    )
    prompts = np.array(table["prompt_key"].to_pylist(), dtype=np.str_)
    numbers = zip(table["prompt_key"].to_pylist(), table["sample"].to_pylist(), strict=True)
    items = np.array([f"{prompt}:{sample}" for prompt, sample in numbers], dtype=np.str_)
    values = (forward + backward) / 2
    title = f"win rate over S, by {told.judge}"
    whole = ItemScores(f"win_rate:{told.asked}", title, "win_rate", items, prompts, values)
    return whole.take(~np.isnan(values))


def averaged(trials: Sequence[Sequence[ItemScores]]) -> dict[str, ItemScores]:
    """Return the scores that all ``trials`` of an arm have, averaged over them item by item."""
    return {
        key: replace(found[0], values=np.mean([each.values for each in found], axis=0))
        for key, found in by_key(trials).items()
    }


def by_key(trials: Sequence[Sequence[ItemScores]]) -> dict[str, list[ItemScores]]:
    """Return the scores that all ``trials`` have, of each on the items of all of them.

    A suite that was not asked on the same documents is left out: its weights would not add up.
    """
    named = [{each.key: each for each in trial} for trial in trials]
    common: dict[str, list[ItemScores]] = {}
    for key in named[0]:
        found = [trial[key] for trial in named if key in trial]
        items: NDArray[np.str_] = reduce(np.intersect1d, (each.items for each in found))
        is_whole = all(len(each.items) == len(items) for each in found)
        if len(found) == len(named) and len(items) and (is_whole or found[0].kind != "suite"):
            common[key] = [_on(each, items) for each in found]
    return common


def _on(scores: ItemScores, items: NDArray[np.str_]) -> ItemScores:
    order = np.argsort(scores.items)
    return scores.take(order[np.searchsorted(scores.items, items, sorter=order)])


def scores_table(scores: Sequence[ItemScores]) -> pa.Table:
    """Return scores as a table, a row for each item."""
    columns: dict[str, list[str]] = {name: [] for name in ("key", "title", "kind")}
    for each in scores:
        for name in columns:
            columns[name] += [str(getattr(each, name))] * len(each.items)
    return pa.table(
        {
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
            "item": pa.array([i for s in scores for i in s.items.tolist()], pa.string()),
            "cluster": pa.array([c for s in scores for c in s.clusters.tolist()], pa.string()),
            "value": pa.array([v for s in scores for v in s.values.tolist()], pa.float64()),
        }
    )


def scores_of_table(table: pa.Table) -> list[ItemScores]:
    """Return the scores of a table that :func:`scores_table` made."""
    return list(_scores_of(table))


def _scores_of(table: pa.Table) -> Iterator[ItemScores]:
    keys = np.asarray(table["key"].to_pylist(), dtype=np.str_)
    strings = {
        name: np.asarray(table[name].to_pylist(), dtype=np.str_) for name in ("item", "cluster")
    }
    titles, kinds = table["title"].to_pylist(), table["kind"].to_pylist()
    values = table["value"].to_numpy()
    for key in dict.fromkeys(keys.tolist()):
        rows = np.flatnonzero(keys == key)
        yield ItemScores(
            key,
            titles[rows[0]],
            "suite" if kinds[rows[0]] == "suite" else "win_rate",
            strings["item"][rows],
            strings["cluster"][rows],
            values[rows],
        )
