"""Make the three sources of a campaign from files as published.

Each becomes a JSONL file of ``prompt``, ``chosen``, ``rejected`` and ``row``, the number of its row
in the origin. Ties, empty or equal sides and pairs that are longer than asked are left out; of one
prompt the first pair is kept, so that pairs are independent.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.errors import UserError
from sdpo.system.files import file_digest, write_text

FILES = {
    "ultrafeedback": "ultrafeedback_train.jsonl",
    "pandalm": "pandalm_testset-v1.json",
    "polite_rude": "polite_rude.json",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair is a prompt with two answers, from row ``row`` of its file."""

    row: int
    prompt: str
    chosen: str
    rejected: str

    @property
    def longest(self) -> int:
        """Return the characters of the prompt and the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class Source:
    """A source has so many ``pairs`` in ``path``, of ``characters`` on average, prompts once."""

    name: str
    path: Path
    pairs: int
    characters: float
    digest: str


def make_sources(folders: Sequence[Path], out: Path, *, characters: int) -> list[Source]:
    """Write the sources into ``out``: pairs of at most ``characters`` characters a sequence.

    Raises:
        UserError: a file is in none of the folders, or is not what it should be.
    """
    return [_make(name, _find(folders, file), out, characters) for name, file in FILES.items()]


def _find(folders: Sequence[Path], name: str) -> Path:
    for folder in folders:
        for found in (folder / name, folder / "preferences" / name):
            if found.is_file():
                return found
    raise UserError(
        f"{name} is in none of {', '.join(map(str, folders)) or 'the folders'}: name the folder "
        "that has it, or the one above `preferences`, with --data"
    )


def _make(name: str, path: Path, out: Path, characters: int) -> Source:
    try:
        pairs = list(_short(_READERS[name](path), characters))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the file of {name} as published: {error!r}") from error
    written = out / f"{name}.jsonl"
    lines = (
        json.dumps(
            {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "row": p.row},
            ensure_ascii=False,
        )
        for p in pairs
    )
    write_text(written, "".join(f"{line}\n" for line in lines))
    total = sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    return Source(name, written, len(pairs), total / max(1, len(pairs)), file_digest(written))


def _short(pairs: Iterable[Pair], characters: int) -> Iterator[Pair]:
    seen: set[str] = set()
    for pair in pairs:
        sides = (pair.chosen.strip(), pair.rejected.strip())
        if not all(sides) or sides[0] == sides[1] or not pair.prompt.strip():
            continue
        if pair.longest <= characters and pair.prompt not in seen:
            seen.add(pair.prompt)
            yield pair


def _ultrafeedback(path: Path) -> Iterator[Pair]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            scores = row["metadata"]["score_chosen"], row["metadata"]["score_rejected"]
            if scores[0] > scores[1]:
                yield Pair(number, row["prompt"], row["chosen"], row["rejected"])


def _pandalm(path: Path) -> Iterator[Pair]:
    """Yield pairs on which at least two of three people agree."""
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        votes = Counter(row[f"annotator{k}"] for k in (1, 2, 3))
        winner, count = votes.most_common(1)[0]
        answers = row["response1"], row["response2"]
        if count < 2 or winner not in (1, 2) or not all(isinstance(a, str) for a in answers):
            continue
        chosen, rejected = answers if winner == 1 else answers[::-1]
        yield Pair(number, _instruction(row), chosen, rejected)


def _polite_rude(path: Path) -> Iterator[Pair]:
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        yield Pair(number, _instruction(row), row["chosen"], row["rejected"])


def _instruction(row: dict[str, Any]) -> str:
    context = row["input"]
    return f"{row['instruction']}\n\n{context}" if context else str(row["instruction"])


_READERS = {"ultrafeedback": _ultrafeedback, "pandalm": _pandalm, "polite_rude": _polite_rude}
