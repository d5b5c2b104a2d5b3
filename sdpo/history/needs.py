"""What runs need of a cache: which models' log-probs, which token files, which measurements."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdpo.errors import SdpoError
from sdpo.history import proofs
from sdpo.inputs.cache_folder import KEY
from sdpo.store.run_folder import Record, RunFolder
from sdpo.store.token_cache import cached_tokens, token_fault
from sdpo.tokens.token_file import TokenFile


@dataclass(slots=True)
class Needed:
    """What the runs of the folder need of a cache: log-probs under models, token files, KL.

    ``caches``: those that runs name; ``unknown``: why it is not known of some runs what they need.
    """

    models: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    kl: set[str] = field(default_factory=set)
    caches: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def add_needs(run: RunFolder, needed: Needed) -> None:
    """Add what a run needs, or why that is not known."""
    try:
        said = run.read_head("inputs.model", "config.store.cache_dir")
        cache = said.get("config.store.cache_dir")
        needed.caches |= {cache} if isinstance(cache, str) and cache else set()
        needed.models.add(said["inputs.model"])
        for record in map(run.read_record, run.nodes()):
            if record:
                _add_record(record, needed)
    except (SdpoError, OSError) as error:
        needed.unknown.append(str(error))
    except (KeyError, TypeError, AttributeError):
        needed.unknown.append(f"{run.path} was written by another version of this project")


def rows_of(cache: Path, names: set[str]) -> set[bytes] | None:
    """Digests of all rows of these token files; None where a file cannot tell."""
    rows: set[bytes] = set()
    for name in sorted(names):
        path = cached_tokens(cache, name)
        if not proofs.is_plain(path):
            return None
        try:
            tokens = TokenFile.open(path)
        except SdpoError:
            continue  # supervised examples: they have no log-probs
        if token_fault(path):
            return None
        rows |= {tokens.row(int(i)).row_digest for i in np.flatnonzero(tokens.usable)}
    return rows


def _add_record(record: Record, needed: Needed) -> None:
    identity, outputs = record["identity"], record.get("outputs", {})
    inputs = identity.get("inputs", {})
    needed.models |= {outputs["model"]} if "model" in outputs else set()
    needed.models |= {v for k, v in inputs.items() if k in ("base", "reference", "target")}
    scoring = identity.get("scoring", {})
    needed.models |= {scoring["model"]} if "model" in scoring else set()
    own = record.get("models", {}).get("reference", {}).get("tokens")
    for name in (identity.get("tokens"), inputs.get("examples"), own):
        if isinstance(name, str) and KEY.fullmatch(name):  # else it could lead anywhere
            needed.tokens.add(name)
    if "cached" in outputs:
        needed.kl.add(outputs["cached"])
