"""Read a file of prompts as pairs are read: with two answers that stand for none.

So prompts are read, compared and cut into tokens as all pairs are.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sdpo.config import ColumnsConfig, DataConfig, SourceConfig
from sdpo.data.prepare import PreparedPairs, prepare_pairs
from sdpo.data.prompts import lookup
from sdpo.data.readers import place, read_rows
from sdpo.data.schema import Format
from sdpo.errors import DataError

_CHOSEN, _REJECTED = "Yes.", "No."
"""These stand for the answers that a file of prompts does not have."""


def prompts_as_pairs(
    prompts: SourceConfig,
    *,
    column: str,
    name: str,
    setting: str,
    default_format: Format,
    out: Path,
) -> PreparedPairs:
    """Write the prompts of a file into the folder ``out``, a pair for each, as source ``name``.

    ``prompts`` says which file, or data set of the hub; ``column`` has the prompt, text or
    messages; ``setting`` is the setting that says which it is.

    Raises:
        DataError: the file cannot be read, or a row has no such column.
    """
    as_pairs = out / "prompts.jsonl"
    with as_pairs.open("w", encoding="utf-8") as file:
        for row in _with_answers(prompts, column, setting):
            file.write(json.dumps(row) + "\n")
    columns = ColumnsConfig(prompt="prompt", chosen="chosen", rejected="rejected")
    data = DataConfig(sources=[SourceConfig(name=name, path=str(as_pairs), columns=columns)])
    return prepare_pairs(data, default_format=default_format, strata=[], out=out)


def check_prompts(path: str, *, column: str, setting: str) -> None:
    """Refuse a file that cannot be read, or whose first row has no such column.

    Raises:
        DataError: says what the file has.
    """
    next(_with_answers(SourceConfig(path=path), column, setting))


def _with_answers(prompts: SourceConfig, column: str, setting: str) -> Iterator[dict[str, object]]:
    """Yield the prompts of a file as rows with answers that stand for none."""
    rows = read_rows(
        prompts.path, split=prompts.split, subset=prompts.subset, revision=prompts.revision
    )
    for number, row in rows:
        prompt = lookup(row, column)
        if prompt is None:
            raise DataError(
                f"{place(prompts.path, number)}: it has no column `{column}`, but "
                f"{', '.join(map(str, row)) or 'none'}: set {setting}"
            )
        answers: dict[str, object] = {"chosen": _CHOSEN, "rejected": _REJECTED}
        if isinstance(prompt, list):
            answers = {
                side: [{"role": "assistant", "content": text}] for side, text in answers.items()
            }
        yield {"prompt": prompt, **answers}
