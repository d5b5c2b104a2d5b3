"""Keep what was decided about the runs of a retraining, each in its run's folder."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sdpo.errors import ConfigError, IntegrityError
from sdpo.history.extend import effective_overrides
from sdpo.history.new_prompts import drawn_for
from sdpo.promotion.judge import Judgement
from sdpo.promotion.versions import RegisteredModel, Version
from sdpo.store.records import first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json, write_json
from sdpo.system.json_values import JsonObject
from sdpo.system.privacy import withheld_by_folder, withholding

DECISION = "promotion.json"
"""This file of a run holds what was decided about it."""

Status = Literal[
    "nothing new",
    "promoted",
    "refused",
    "too few to tell",
    "rejected",
    "rolled back",
    "unanswered",
    "waiting",
]
_FINAL = ("promoted", "refused", "too few to tell", "rejected", "rolled back")
"""After these the same pairs are not tried again under the same rules."""


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    overrides: list[str]


class Decision(BaseModel):
    """A decision about a run says what came of it, and why."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    run: str
    status: str
    reason: str
    start: dict[str, JsonValue] = Field(alias="from")
    rules: _Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt is a new run of a name: what it starts from, and the rules that judge it."""

    name: str
    start: Version
    run: RunFolder
    rules: JsonObject


def tried_before(
    named: RegisteredModel, run: RunFolder, rules: JsonObject, runs_dir: Path
) -> Iterator[tuple[Decision, set[str]]]:
    """Yield decisions about runs from the current model by the same rules, with the ids of their
    pairs and the keys of the prompts that were drawn for the new step."""
    for path in sorted(runs_dir.glob(f"*/{DECISION}")):
        if not RunFolder(path.parent).is_own:
            continue
        decision = _read_decision(path)
        same = decision.name == named.name and _effective(decision.rules, run) == rules
        if same and decision.start == _start(named.in_use) and decision.status in _FINAL:
            pairs = path.parent / "pairs.parquet"
            ids = set(pq.read_table(pairs, columns=["pair_id"])["pair_id"].to_pylist())
            step = named.in_use.step + 1
            yield decision, ids | drawn_for(RunFolder(path.parent), [step])


def _read_decision(path: Path) -> Decision:
    """Return what was decided about a run.

    Raises:
        IntegrityError: the file is something else.
    """
    try:
        return Decision.model_validate(read_json(path))
    except ValidationError as error:
        raise IntegrityError(
            f"{path} is no decision of a retraining ({first_fault(error)}): move it away, or put "
            "the original back"
        ) from error


def _effective(rules: _Rules, run: RunFolder) -> JsonObject:
    """Spell the overrides of rules alike; those from before 0.2 are left as they were given."""
    spelled = rules.model_dump()
    with suppress(ConfigError):
        return spelled | {"overrides": effective_overrides(run, rules.overrides)}
    return spelled


def _start(version: Version) -> JsonObject:
    return {"run": version.run, "step": version.step, "digest": version.digest}


def taken_out(named: RegisteredModel, run: str) -> str:
    """Say what became of a run that was in use under the name and no longer is; else ""."""
    found = next((v for v in reversed(named.versions) if v.run == run), None)
    if found is None or found.version == named.current:
        return ""
    move = next(m for m in reversed(named.moves) if m.from_version == found.version)
    return f"was version {found.version} of {named.name} and was taken out of use ({move.why})"


def write_decision(attempt: Attempt, found: Judgement, status: Status, reason: str) -> None:
    """Write what was decided, with its numbers, into the run that it is about."""
    content = {
        "name": attempt.name,
        "run": attempt.run.name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": status,
        "reason": reason,
        "from": _start(attempt.start),
        "rules": attempt.rules,
        "judgement": asdict(found),
    }
    with withholding(withheld_by_folder(attempt.run.path)):
        write_json(attempt.run.path / DECISION, content)
