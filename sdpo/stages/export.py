"""Write a copy of a model in another precision, as a stage."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdpo.errors import ModelError
from sdpo.events import EventWriter
from sdpo.identity.adapter_folder import (
    ADAPTER_FILES,
    FULL,
    adapter_weights,
    base_folder,
    is_adapter,
    recorded_base,
)
from sdpo.identity.model_digest import model_digest
from sdpo.identity.model_folder import view_of
from sdpo.model.handed_on import put_over
from sdpo.model.policy import check_digest, copy_tokenizer, load_policy, merge_adapters
from sdpo.model.randomness import own_settings
from sdpo.processes.stage_results import ExportResult
from sdpo.processes.stage_specs import ExportSpec
from sdpo.stages.rounding import RoundingProbe
from sdpo.store.model_card import CARD_FILES, exported
from sdpo.system.files import publish_folder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(spec: ExportSpec, events: EventWriter) -> ExportResult:
    """Write ``spec.source`` as ``spec.out`` in ``spec.dtype``, an adapter merged unless asked."""
    events.phase("load", detail=str(spec.source))
    with publish_folder(spec.out) as temporary:
        if spec.as_adapter:
            _copy_adapter(spec, temporary)
        else:
            _write_weights(spec, temporary, events)
        copy_tokenizer(spec.source, temporary)
        if missing := [name for name in CARD_FILES if not (spec.source / name).is_file()]:
            told = f"{spec.source} has no {' and no '.join(missing)}"
            events.warning(f"{told}: the copy has no card")
        else:
            _write_card(spec, temporary)
    return ExportResult(out=str(spec.out), dtype=spec.dtype)


def _write_weights(spec: ExportSpec, folder: Path, events: EventWriter) -> None:
    policy = merge_adapters(load_policy(spec.source, model=spec.model, digest=spec.digest))
    if spec.onto_original:
        policy = _onto_original(spec, policy, events)
    policy = policy.to(getattr(torch, spec.dtype))
    with own_settings(policy):
        policy.save_pretrained(folder, safe_serialization=True)


def _onto_original(
    spec: ExportSpec, rounded: "PreTrainedModel", events: EventWriter
) -> "PreTrainedModel":
    """Return the base as it was with the adapter merged, and tell how far it is from ``rounded``.

    That is the adapter over the base with its rounded values, in which it was trained.
    """
    probe = None
    if spec.usable and spec.tokens:
        probe = RoundingProbe(spec.usable, spec.tokens, precision=FULL)
        probe.see(rounded)
    exact = spec.model.model_copy(update={"base_precision": FULL})
    digest = recorded_base(spec.source).digest
    base = load_policy(base_folder(spec.source), model=exact, digest=digest)
    with view_of(spec.source) as view:
        check_digest(spec.source, spec.digest)
        policy = merge_adapters(put_over(base, spec.source, view))
    found = probe.compare(policy) if probe else None
    told = "how far is not known, as the run's tokens or its reserved pairs are gone"
    if found:
        told = (
            f"on {found.pairs} reserved pairs its log-probs are {found.nats_per_token:.3g} nats a "
            f"token from those of what was trained, a completion's at most "
            f"{found.largest_nats:.3g}, a pair's margin {found.gamma_nats:.3g} on average"
        )
    events.warning(
        f"merged onto the base as it was before it was held in {spec.model.base_precision}, the "
        f"adapter is another model: {told}"
    )
    return policy


def _copy_adapter(spec: ExportSpec, folder: Path) -> None:
    """Copy the files of an adapter, byte for byte, and check that they are those of ``digest``."""
    for path in (adapter_weights(spec.source), *map(spec.source.joinpath, ADAPTER_FILES)):
        shutil.copyfile(path, folder / path.name)
    if spec.digest and model_digest(folder) != spec.digest:
        raise ModelError(f"{spec.source} was changed while it was copied: export it again")


def _write_card(spec: ExportSpec, folder: Path) -> None:
    """Write the card of the model in ``folder``, which says of which model it is a copy."""
    texts = {n: (spec.source / n).read_text(encoding="utf-8") for n in CARD_FILES}
    is_merged = is_adapter(spec.source) and not spec.as_adapter
    if spec.dtype != "float32" or is_merged:  # it was published in fp32
        texts = exported(texts, dtype=spec.dtype, model=model_digest(folder))
    for name, text in texts.items():
        write_text(folder / name, text)
