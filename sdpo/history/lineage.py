"""Tell how a checkpoint came to be, from its run or from the file that travels with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from sdpo.errors import SdpoError, UserError
from sdpo.history.target import Checkpoint, locate, read_lineage
from sdpo.identity.model_digest import model_digest
from sdpo.identity.model_folder import unused_files
from sdpo.model_names import ModelName
from sdpo.store.lineage_file import LineageEntry, LineageFile
from sdpo.store.model_card import lineage as chain_of
from sdpo.store.published_files import strays
from sdpo.store.recorded import damage_beside_weights, whole_steps
from sdpo.system.files import file_digest
from sdpo.system.json_values import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link is one model of the chain: digests of what went in and came out, and its settings.

    ``name``: M_t, or the guide that step t has for its reference. ``models``: the names of its
    reference and target.
    """

    step: int
    name: str
    kind: str
    models: dict[str, str]
    reference: str
    target: str
    data: str
    model: str
    settings: dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A lineage is the chain of a model, S or the base model first.

    ``inputs``: digests of base model, tokenizer and data sources. ``folder`` is the model's own,
    ``digest`` that of its present content, empty where it cannot be read. ``faults``: links that do
    not meet, and what else is wrong with the folder.
    """

    run: str
    model: str
    folder: str
    inputs: dict[str, str]
    links: tuple[Link, ...]
    digest: str
    faults: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Return whether the folder holds the model that the chain ends in, and has no faults."""
        return not self.faults

    def as_json(self) -> JsonObject:
        """Return the lineage in JSON types, for other programs."""
        return asdict(self) | {"is_whole": self.is_whole}


def lineage_of(target: str, *, runs_dir: Path, step: int | None = None) -> Lineage:
    """Return the lineage of a run's last model, of a checkpoint, or of a model folder anywhere.

    ``step``: the step that is meant, where it is given beside the run.

    Raises:
        UserError: it is none of these, it is another step, or the run has no complete step.
    """
    folder = Path(target)
    if step is None and (folder / "lineage.json").is_file():
        content = read_lineage(folder)
        return _lineage(content, folder, _unused(folder))
    return _of_run(locate(target, runs_dir=runs_dir, step=step))


def _of_run(found: Checkpoint) -> Lineage:
    run, done = found.run, whole_steps(found.run)
    number = found.step if found.step is not None else (done[-1] if done else -1)
    if number not in done:
        listed = ", ".join(map(str, done)) or "none"
        raise UserError(f"run {run.name} has no complete step {number}; complete: {listed}")
    node = f"step-{number}"
    record = run.step_record(node)
    content = LineageFile(
        run=run.name,
        model=str(ModelName(number)),
        inputs=run.read_run().inputs,
        steps=chain_of(run, record),
    )
    faults = damage_beside_weights(run, record, run.model(number))
    faults += [f"{name} was not published by this run" for name in strays(run, node, record)]
    return _lineage(content, run.model(number), faults)


def digest_of_card(folder: Path) -> str:
    """Return the sha256 of the model's card as hexadecimal digits; "" where there is none."""
    card = folder / "README.md"
    return file_digest(card) if card.is_file() else ""


def _unused(folder: Path) -> list[str]:
    """Return what a copied model folder has beside the model; nothing if it cannot be read.

    That it cannot be read is found when its digest is computed.
    """
    try:
        names = unused_files(folder)
    except (SdpoError, OSError):
        return []
    return [f"{name} is no part of the model, and was not published with it" for name in names]


def _lineage(content: LineageFile, folder: Path, others: Sequence[str]) -> Lineage:
    links = tuple(map(_link, content.steps))
    try:
        digest, faults = model_digest(folder), []
    except (SdpoError, OSError) as error:
        digest, faults = "", [f"the model cannot be read: {error}"]
    wanted, what, copy = links[-1].model, content.model, content.export
    if copy:
        wanted, what = copy.model, f"the copy of {what} in {copy.dtype}"
    if digest and digest != wanted:
        faults.append(
            f"the folder does not hold {what}: its digest is {digest[:16]}, not {wanted[:16]}"
        )
    if copy and digest_of_card(folder) != copy.card:
        faults.append("README.md is not the card that was exported with the model")
    return Lineage(
        run=content.run,
        model=content.model,
        folder=str(folder.absolute()),
        inputs=content.inputs,
        links=links,
        digest=digest,
        faults=(*_gaps(links, content.inputs), *faults, *others),
    )


def _link(entry: LineageEntry) -> Link:
    inputs, training = entry.inputs, entry.identity.get("training")
    return Link(
        step=entry.step,
        name=entry.name or str(ModelName(entry.step)),
        kind=entry.kind,
        models={role: model.name for role, model in entry.models.items()},
        reference=inputs.get("reference", ""),
        target=inputs.get("target", inputs.get("base", "")),
        data=inputs.get("partition", inputs.get("examples", "")),
        model=entry.outputs["model"],
        settings=training if isinstance(training, dict) else {},
    )


def _gaps(links: tuple[Link, ...], inputs: Mapping[str, str]) -> list[str]:
    """Return where a model comes from one that no earlier step has made, and no recipe names."""
    if "model" not in inputs:
        return []
    known = {inputs["model"]}
    given = {digest for name, digest in inputs.items() if name.startswith("reference.")}
    faults: list[str] = []
    for link in links:
        if link.target not in known:
            faults.append(
                f"{link.name} starts from {link.target[:16]}, which no earlier step has made"
            )
        if link.reference and link.reference not in known | given:
            faults.append(
                f"{link.name} was compared with {link.reference[:16]}, which no earlier step has "
                "made and the recipe does not name"
            )
        known.add(link.model)
    return faults
