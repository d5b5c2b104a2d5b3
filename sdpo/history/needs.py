"""Tell what runs need of a cache: models' log-probs, token files, measurements."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdpo.errors import SdpoError
from sdpo.history import proofs
from sdpo.inputs.cache_folder import KEY
from sdpo.store.records import NodeRecord, StepRecord, scored_model
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import step_data
from sdpo.store.token_cache import cached_tokens, token_fault
from sdpo.tokens.token_file import TokenFile

_ROLES = ("base", "reference", "target")


@dataclass(slots=True)
class Needed:
    """The runs of a folder need this of a cache: log-probs under models, token files, KL.

    ``own``: token files that runs have in their own folders. ``caches``: those that runs name;
    ``unknown``: for some runs, why it is not known what they need.
    """

    models: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    own: set[Path] = field(default_factory=set)
    kl: set[str] = field(default_factory=set)
    caches: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def add_needs(run: RunFolder, needed: Needed) -> None:
    """Add what a run needs, or why that is not known."""
    try:
        said = run.read_head("inputs.model", "config.store.cache_dir")
        cache = said.get("config.store.cache_dir")
        needed.caches |= {cache} if isinstance(cache, str) and cache else set()
        needed.models.add(str(said["inputs.model"]))
        for record in map(run.find_any, run.nodes()):
            if record:
                _add_record(record, needed)
        needed.own |= {data.tokens for data in step_data(run)}
    except (SdpoError, OSError) as error:
        needed.unknown.append(str(error))
    except (KeyError, TypeError, AttributeError):
        needed.unknown.append(f"{run.path} was written by another version of this project")


def rows_of(cache: Path, needed: Needed) -> set[bytes] | None:
    """Return the digests of all usable rows that runs have; None where a token file cannot tell."""
    rows: set[bytes] = set()
    for name in sorted(needed.tokens):
        path = cached_tokens(cache, name)
        if not proofs.is_plain(path):
            return None
        try:
            tokens = TokenFile.open(path)
        except SdpoError:
            continue  # supervised examples: they have no log-probs
        if token_fault(path):
            return None
        rows |= _digests(tokens)
    for path in sorted(needed.own):
        try:
            rows |= _digests(TokenFile.open(path))
        except SdpoError:
            return None
    return rows


def _digests(tokens: TokenFile) -> set[bytes]:
    return {tokens.row(int(i)).row_digest for i in np.flatnonzero(tokens.usable)}


def _add_record(record: NodeRecord | StepRecord, needed: Needed) -> None:
    inputs = record.identity.get("inputs", {})
    if not isinstance(inputs, dict):
        raise TypeError("inputs")
    models = {record.outputs.get("model"), scored_model(record), *map(inputs.get, _ROLES)}
    needed.models |= {model for model in models if isinstance(model, str) and model}
    said = record.models.get("reference") if isinstance(record, StepRecord) else None
    own = said.token_files if said else []
    for name in (record.identity.get("tokens"), inputs.get("examples"), *own):
        if isinstance(name, str) and KEY.fullmatch(name):  # else it could lead anywhere
            needed.tokens.add(name)
    if isinstance(cached := record.outputs.get("cached"), str):
        needed.kl.add(cached)
