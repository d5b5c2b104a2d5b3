"""Writing small data files and preparing them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from sdpo.config import DataConfig
from sdpo.data.pairs_file import iter_pairs, pair_from_row
from sdpo.data.prepare import PreparedPairs, prepare_pairs
from sdpo.data.schema import Pair


def pairs_in(path: Path) -> list[Pair]:
    return [pair_from_row(row) for batch in iter_pairs(path) for row in batch.to_pylist()]


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows (or raw text) to a JSONL file and return its path."""

    def write(rows: Iterable[dict[str, Any]] | str, name: str = "data.jsonl") -> str:
        text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="\n")
        return str(path)

    return write


class Prepared:
    """What came out of a preparation, read back from the files."""

    def __init__(self, result: PreparedPairs):
        self.result = result
        self.pairs = pairs_in(result.path)
        self.rejected = lines_in(result.rejected_path)

    def reasons(self) -> list[tuple[str, int, str]]:
        return [(line["source"], line["row"], line["reason"]) for line in self.rejected]


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Prepared]:
    """Prepare sources (each a dict of a source's settings, or a path)."""

    def prepare(
        *sources: dict[str, Any] | str,
        format: str = "chat",
        strata: Iterable[str] = (),
        **data: Any,
    ) -> Prepared:
        settings = [{"path": s} if isinstance(s, str) else s for s in sources]
        config = DataConfig.model_validate({"sources": settings, **data})
        return Prepared(
            prepare_pairs(
                config,
                default_format=format,  # type: ignore[arg-type]
                strata=["source", *strata],
                out=tmp_path / "run",
            )
        )

    return prepare
