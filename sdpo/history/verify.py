"""Verify: is everything in a run what it was when it was written, and does one thing follow from
the other?

Three kinds of checks, each of which stands without the others: bytes (every recorded file and
record against its digest), the chain (every step's models against the steps before), and the
walk (every record's identity against what run.yaml and its inputs give now, by the functions that
make runs). What cannot be checked because something outside the run is not there is a note.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.cache import LogpCache, part_is_whole
from sdpo.card import card_files
from sdpo.digest import model_digest
from sdpo.errors import IntegrityError, SdpoError
from sdpo.events import Listener
from sdpo.files import TEMPORARY, checksum_path, digest_of, file_digest, read_json
from sdpo.history.faults import Findings
from sdpo.history.follow import follow
from sdpo.nodes import cached_tokens, token_fault
from sdpo.origin import origin_chain
from sdpo.resolve import cache_dir
from sdpo.run import Stored, read_stored
from sdpo.store import Record, RunFolder
from sdpo.tokens.store import TokenFile

_CACHE_REMEDY = "delete it (`sdpo gc`): what is missing is computed again"


def verify_run(run: RunFolder, *, listen: Listener = lambda event: None) -> Findings:
    """Everything that is wrong with a run; it is only read.

    Raises:
        UserError: there is no run, or another version of this project wrote it.
    """
    findings = Findings()
    try:
        stored = read_stored(run)
    except IntegrityError as error:
        remedy = "put the original back; the rest is checked without it"
        findings.fault("run.yaml", str(error), remedy)
        stored = None
    if stored and not checksum_path(run.run_file).is_file():
        findings.fault(
            "run.yaml.sha256",
            "is missing, so that a change of run.yaml would not be noticed",
            "where you trust run.yaml: `sha256sum run.yaml > run.yaml.sha256`",
        )
    records = _read_records(run, findings)
    _check_files(run, records, findings, listen)
    _check_models(run, stored, records, findings)
    _check_views(run, records, findings)
    if stored:
        _check_sharing(run, stored, records, findings)
        cache = cache_dir(stored.config)
        _check_tokens(cache, records, findings)
        _check_references(run, cache, records, findings)
        follow(run, stored, cache, findings)
    leftovers = list(run.path.rglob(f"{TEMPORARY}*"))
    if leftovers:
        findings.note(f"{len(leftovers)} unfinished files of a process that died: see `sdpo gc`")
    return findings


def _read_records(run: RunFolder, findings: Findings) -> dict[str, Record]:
    """Every record that is whole, by its node."""
    nodes = [path.stem for path in sorted(run.path.glob("nodes/*.json"))]
    nodes += [f"step-{n}" for n in run.step_numbers() if run.record_path(f"step-{n}").is_file()]
    records: dict[str, Record] = {}
    for node in nodes:
        path = run.record_path(node)
        name = str(path.relative_to(run.path))
        try:
            record = run.read_record(node)
        except IntegrityError as error:
            findings.fault(name, str(error).removeprefix(f"{path} "))
            continue
        if record is None:
            findings.fault(name, "has no .sha256 beside it, so that it counts as not written")
        else:
            records[node] = record
    for path in sorted(run.path.rglob("*.json.sha256")):
        if not path.with_suffix("").is_file():
            findings.fault(str(path.relative_to(run.path)), "belongs to a record that is gone")
    findings.records = len(records)
    return records


def _check_files(
    run: RunFolder, records: Mapping[str, Record], findings: Findings, listen: Listener
) -> None:
    files = {name: record for record in records.values() for name in record["files"]}
    findings.files = len(files)
    for done, (name, record) in enumerate(sorted(files.items()), start=1):
        for fault in run.damage({"files": {name: record["files"][name]}}):
            shared = record.get("shared_from")
            also = f" (shared with {shared['run']})" if shared else ""
            findings.fault(name, fault.removeprefix(f"{name} ") + also)
        listen(
            {
                "event": "progress",
                "phase": f"verify {run.name}",
                "done": done,
                "total": len(files),
                "unit": "files",
                "note": name,
            }
        )


def _check_models(
    run: RunFolder, stored: Stored | None, records: Mapping[str, Record], findings: Findings
) -> None:
    """Every model against the digest in its record, every step's models against those before."""
    known = {stored.inputs["model"]: "the base model"} if stored else {}
    previous = stored.inputs["model"] if stored else None
    for number in run.step_numbers():
        record = records.get(f"step-{number}")
        name = f"step-{number}/record.json"
        if record is None:
            previous = None
            continue
        if record["identity_digest"] != digest_of(record["identity"]):
            findings.fault(name, "its identity_digest is not that of its identity")
        for role in ("base", "reference", "target"):
            digest = record["inputs"].get(role)
            if digest is None or (known and digest in known and not _must_follow(record, role)):
                continue
            if previous and digest != previous:
                findings.fault(
                    name,
                    f"its {role} is {digest[:16]}, and the model before it is {previous[:16]}",
                )
        try:
            found = model_digest(run.model(number))
        except (SdpoError, OSError) as error:
            findings.fault(f"step-{number}/model", str(error))
        else:
            if found != record["outputs"]["model"]:
                findings.fault(
                    f"step-{number}/model",
                    f"its digest is {found[:16]}, not {record['outputs']['model'][:16]}",
                )
        previous = record["outputs"]["model"]
        known[previous] = f"M_{number}"


def _must_follow(record: Record, role: str) -> bool:
    """Whether a step's settings say that this model is the previous step's (the default)."""
    choice = record["identity"].get("training", {}).get(role, "previous")
    return role != "base" and choice == "previous"


def _check_views(run: RunFolder, records: Mapping[str, Record], findings: Findings) -> None:
    """Card and lineage that travel with each model: what they should say is known."""
    for number in run.step_numbers():
        record = records.get(f"step-{number}")
        if record is None or any(f"step-{n}" not in records for n in _before(run, number)):
            continue
        try:
            wanted = card_files(run, record, name=f"M_{number}", folder=run.model(number))
        except (SdpoError, OSError):
            continue  # config.json of the model, or run.yaml: named already
        for name, text in wanted.items():
            path = run.model(number) / name
            if not path.is_file() or path.read_bytes() != text.encode():
                what = "was changed" if path.is_file() else "is missing"
                findings.fault(str(path.relative_to(run.path)), what)


def _before(run: RunFolder, number: int) -> list[int]:
    return [n for n in run.step_numbers() if n < number]


def _check_sharing(
    run: RunFolder, stored: Stored, records: Mapping[str, Record], findings: Findings
) -> None:
    origins, missing = origin_chain(run, stored.origin)
    for sentence in missing:
        findings.note(f"{sentence}: what is shared with it cannot be compared")
    by_name = {origin.name: origin for origin in origins}
    for node, record in records.items():
        shared = record.get("shared_from")
        there = by_name.get(shared["run"]) if shared else None
        if not shared or there is None:
            continue
        path = there.record_path(node)
        if not path.is_file() or file_digest(path) != shared["record"]:
            findings.note(
                f"{node} is shared with {there.name}, which has made it again or lost it since: "
                "the files here are those that were shared"
            )


def _check_tokens(cache: Path, records: Mapping[str, Record], findings: Findings) -> None:
    reserve = records.get("reserve")
    if reserve is None:
        return
    path = cached_tokens(cache, reserve["identity"]["tokens"])
    if not path.is_file():
        findings.note(f"the tokens are not in the cache ({path}): they are made again when needed")
    elif token_fault(path):
        findings.fault(str(path), "was changed, or its .sha256 is gone", _CACHE_REMEDY)


def _check_references(
    run: RunFolder, cache: Path, records: Mapping[str, Record], findings: Findings
) -> None:
    """``reference.parquet`` of each step: its record, its pairs, and the cache it came from."""
    plan = _read_table(run.plan, ["pair_id", "step", "token_row"])
    tokens = _tokens(cache, records)
    for node, record in records.items():
        digest = record.get("inputs", {}).get("reference_logps")
        path = run.path / node / "reference.parquet"
        if digest is None:
            continue
        name = str(path.relative_to(run.path))
        if path.is_file() and file_digest(path) != digest:
            findings.fault(name, "is not what the step was trained against")
            continue
        table = _read_table(path, None)
        if table is None or plan is None:
            continue
        members = plan.filter(pa.array(plan["step"].to_numpy() == record["step"]))
        if table["pair_id"].to_pylist() != members["pair_id"].to_pylist():
            findings.fault(name, f"has not the pairs of D_{record['step']}")
        elif tokens:
            _check_cached(run, cache, node, record, members, table, tokens, findings)
    _check_parts(cache, records, findings)


def _check_cached(
    run: RunFolder,
    cache: Path,
    node: str,
    record: Record,
    members: pa.Table,
    table: pa.Table,
    tokens: TokenFile,
    findings: Findings,
) -> None:
    """The cache must not hold other values than those the step was trained against."""
    key = _scoring_key(cache, record["inputs"]["reference"], records_of_probe(run, record))
    if key is None:
        return
    try:
        rows = [tokens.row(row).row_digest for row in members["token_row"].to_pylist()]
        found = LogpCache(cache, key).lookup(rows)
    except (SdpoError, OSError, pa.ArrowException) as error:
        findings.note(f"{node}: the cached log-probs cannot be read: {error}")
        return
    stored = [table[f"reference_{side}_logps"].to_numpy() for side in ("chosen", "rejected")]
    for mine, theirs in zip(stored, (found.chosen, found.rejected), strict=True):
        if (mine[found.present] != theirs[found.present]).any():
            name = f"{node}/reference.parquet"
            findings.fault(name, "and the cache have other log-probs for the same pairs")


def records_of_probe(run: RunFolder, record: Record) -> dict[str, Any] | None:
    """The scoring key in the record of the probe of a step's reference, if that is there."""
    node = f"probe-M_{record['step'] - 1}"
    probe = None if run.is_damaged(node) else run.read_record(node)
    key: dict[str, Any] | None = probe["identity"]["scoring"] if probe else None
    return key


def _scoring_key(
    cache: Path, reference: str, key: dict[str, Any] | None
) -> dict[str, str | int] | None:
    if key is None or key.get("model") != reference:
        return None
    folder = cache / "logps" / digest_of(key)[:32]
    return key if folder.is_dir() else None


def _check_parts(cache: Path, records: Mapping[str, Record], findings: Findings) -> None:
    """Cached log-probs under the run's models: every part by its name, every key by its folder."""
    keys = [r["identity"]["scoring"] for n, r in records.items() if n.startswith("probe-")]
    for key in keys:
        folder = cache / "logps" / digest_of(key)[:32]
        if not folder.is_dir():
            continue
        for part in sorted(folder.glob("[!.]*.parquet")):
            if not part_is_whole(part):
                findings.fault(str(part), "was changed", _CACHE_REMEDY)
        try:
            is_key = digest_of(read_json(folder / "key.json"))[:32] == folder.name
        except (SdpoError, OSError):
            is_key = False
        if not is_key:
            remedy = "delete it: it is written again, and says to a person what the rows are of"
            findings.fault(str(folder / "key.json"), "is not the folder's key", remedy)


def _tokens(cache: Path, records: Mapping[str, Record]) -> TokenFile | None:
    reserve = records.get("reserve")
    if reserve is None:
        return None
    path = cached_tokens(cache, reserve["identity"]["tokens"])
    return None if token_fault(path) else TokenFile.open(path)


def _read_table(path: Path, columns: list[str] | None) -> pa.Table | None:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException):
        return None  # its own digest says that it is damaged
