"""Verify a run: is everything as it was written, and does one thing follow from the other?

There are three kinds of checks, each of which stands without the others: bytes (every recorded file
and record against its digest), the chain (every step's models against the steps before), and the
walk (every record's identity against what run.yaml and its inputs give now, by the functions that
make runs). What cannot be checked because something outside the run is not there is a note.
"""

import os
from collections.abc import Iterator, Mapping, Set

from sdpo.errors import IntegrityError, SdpoError
from sdpo.events import Listener, ProgressEvent
from sdpo.history.faults import Findings
from sdpo.history.verify_caches import check_cached
from sdpo.history.verify_chain import follow
from sdpo.identity.canonical import digest_of
from sdpo.identity.model_digest import model_digest
from sdpo.inputs.named_models import stored_references
from sdpo.inputs.resolve import cache_dir
from sdpo.store.model_card import card_files
from sdpo.store.origin import origin_chain
from sdpo.store.published_files import strays
from sdpo.store.records import MergedOutputs, NodeRecord, StepRecord, merged_node
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import Stored, read_stored
from sdpo.system.files import checksum_path, file_digest, temporaries
from sdpo.system.ownership import MARKER, is_marked

Known = NodeRecord | StepRecord


def verify_run(run: RunFolder, *, listen: Listener = lambda event: None) -> Findings:
    """Return everything that is wrong with a run, which is only read.

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
    _check_marker(run, findings)
    records = _read_records(run, findings)
    _check_files(run, records, findings, listen)
    _check_models(run, stored, records, findings)
    _check_views(run, records, findings)
    if stored:
        _check_sharing(run, stored, records, findings)
        cache = cache_dir(stored.config)
        check_cached(run, stored, cache, records, findings)
        follow(run, stored, cache, findings)
    leftovers = temporaries(run.path)
    if leftovers:
        findings.note(f"{len(leftovers)} unfinished files of a process that died: see `sdpo gc`")
    return findings


def _check_marker(run: RunFolder, findings: Findings) -> None:
    """Check the marker of a run's folder: a damaged one is a fault, a missing one only a note.

    Runs that were made before there were markers have none.
    """
    if not os.path.lexists(run.path / MARKER):
        findings.note(
            f"the folder has no {MARKER}: it was made before there were markers, or lost its own"
        )
    elif not is_marked(run.path, "run"):
        findings.fault(
            MARKER,
            "is not the marker of a run that this project made",
            "where the run is yours: remove it, and run.yaml with its digest vouches for the run",
        )


def _read_records(run: RunFolder, findings: Findings) -> dict[str, Known]:
    """Return every record that is whole, by its node."""
    records: dict[str, Known] = {}
    for node in run.nodes():
        path = run.record_path(node)
        name = str(path.relative_to(run.path))
        try:
            record = run.find_any(node)
        except IntegrityError as error:
            findings.fault(name, str(error).removeprefix(f"{path} "))
            continue
        if record is None:
            findings.fault(
                name,
                f"has no {checksum_path(path).name} beside it, so that it counts as not written",
            )
        else:
            records[node] = record
    for path in sorted(run.path.rglob("*.json.sha256")):
        if not path.with_suffix("").is_file():
            findings.fault(str(path.relative_to(run.path)), "belongs to a record that is gone")
    findings.records = len(records)
    return records


def _check_files(
    run: RunFolder, records: Mapping[str, Known], findings: Findings, listen: Listener
) -> None:
    files = {name: record for record in records.values() for name in record.files}
    findings.files = len(files)
    for done, (name, record) in enumerate(sorted(files.items()), start=1):
        for fault in run.damage({"files": {name: record.files[name]}}):
            shared = record.shared_from
            also = f" (shared with {shared.run})" if shared else ""
            findings.fault(name, fault.removeprefix(f"{name} ") + also)
        listen(
            ProgressEvent(
                phase=f"verify {run.name}", done=done, total=len(files), unit="files", note=name
            )
        )


def _check_models(
    run: RunFolder, stored: Stored | None, records: Mapping[str, Known], findings: Findings
) -> None:
    """Check every model against the digest in its record, and what it was made from by name."""
    known = {"base": stored.inputs["model"], "M_0": stored.inputs["model"]} if stored else {}
    given = None
    if stored:
        given = {ref.digest for ref in stored_references(stored.config, stored.inputs).values()}
    for number in run.step_numbers():
        if f"step-{number}" not in records:
            known.pop(f"M_{number}", None)
        if average := _average(run, records.get(merged_node(number)), known, findings):
            known[merged_node(number)] = average.model
        for node in (f"guide-{number}", f"step-{number}"):
            if isinstance(record := records.get(node), StepRecord):
                name = str(run.record_path(node).relative_to(run.path))
                for what in _wrong_links(record, known, given):
                    findings.fault(name, what)
                _check_model(run, node, record, findings)
                known[record.name] = record.model


def _average(
    run: RunFolder, record: Known | None, known: Mapping[str, str], findings: Findings
) -> MergedOutputs | None:
    """Return what a record says of an average of models; None where there is no such record.

    Its models must be those that are ``known`` by their names.
    """
    if record is None or isinstance(record, StepRecord):
        return None
    told, node = record.read_outputs(MergedOutputs), record.node
    digests = record.identity.get("models")
    for name, digest in zip(told.of, digests if isinstance(digests, list) else [], strict=False):
        if digest != known.get(name, digest):
            what = f"is an average with {name} {str(digest)[:16]}, which is {known[name][:16]}"
            findings.fault(str(run.record_path(node).relative_to(run.path)), what)
    _check_digest(run, node, told.model, findings)
    return told


def _wrong_links(
    record: StepRecord, known: Mapping[str, str], given: Set[str] | None
) -> Iterator[str]:
    """Yield what in a record does not follow from the models that it was made from.

    ``known`` are digests by the name of the model, ``given`` those of models that the recipe names.
    """
    if record.identity_digest != digest_of(record.identity):
        yield "its identity_digest is not that of its identity"
    for role, wanted in _ancestors(record).items():
        digest, expected = record.inputs.get(role, ""), known.get(wanted)
        if wanted == "given" and given is not None and digest not in given:
            yield f"its {role} is {digest[:16]}, which is none that the recipe names"
        elif expected and digest != expected:
            yield f"its {role} is {digest[:16]}, and {wanted} is {expected[:16]}"


def _ancestors(record: StepRecord) -> dict[str, str]:
    """Return by role the name of the model that a record's model was made from.

    ``given`` stands for a model that the recipe names.
    """
    if record.kind == "supervised":
        return {"base": "base"}
    wanted = {
        "previous": f"M_{record.step - 1}",
        "base": "M_0",
        "guided": f"guide-{record.step}",
        "merged": merged_node(record.step) if record.step > 1 else "M_0",
        "model": "given",
    }
    said = record.models
    return {
        role: wanted.get(said[role].choice, said[role].name)
        for role in ("reference", "target")
        if said[role].choice != "none"
    }


def _check_model(run: RunFolder, node: str, record: StepRecord, findings: Findings) -> None:
    for stray in strays(run, node, record):
        findings.fault(stray, "was not published by this run", "move it elsewhere")
    _check_digest(run, node, record.model, findings)


def _check_digest(run: RunFolder, node: str, digest: str, findings: Findings) -> None:
    try:
        found = model_digest(run.path / node / "model")
    except (SdpoError, OSError) as error:
        findings.fault(f"{node}/model", str(error))
        return
    if found != digest:
        findings.fault(f"{node}/model", f"its digest is {found[:16]}, not {digest[:16]}")


def _check_views(run: RunFolder, records: Mapping[str, Known], findings: Findings) -> None:
    """Check card and lineage that travel with each model: what they should say is known."""
    published = {n: record for n, record in records.items() if isinstance(record, StepRecord)}
    for node, record in published.items():
        if any(f"step-{n}" not in records for n in run.step_numbers() if n < record.step):
            continue
        folder = run.path / node / "model"
        try:
            wanted = card_files(run, record, name=record.name, folder=folder)
        except (SdpoError, OSError):
            continue  # config.json of the model, or run.yaml: named already
        for name, text in wanted.items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != text.encode():
                what = "was changed" if path.is_file() else "is missing"
                findings.fault(str(path.relative_to(run.path)), what)


def _check_sharing(
    run: RunFolder, stored: Stored, records: Mapping[str, Known], findings: Findings
) -> None:
    origins, missing = origin_chain(run, stored.origin)
    for sentence in missing:
        findings.note(f"{sentence}: what is shared with it cannot be compared")
    by_name = {origin.name: origin for origin in origins}
    for node, record in records.items():
        shared = record.shared_from
        there = by_name.get(shared.run) if shared else None
        if not shared or there is None:
            continue
        path = there.record_path(node)
        if not path.is_file() or file_digest(path) != shared.record:
            findings.note(
                f"{node} is shared with {there.name}, which has made it again or lost it since: "
                "the files here are those that were shared"
            )
