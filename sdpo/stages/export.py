"""Write a copy of a model in another precision, as a stage."""

import shutil
from pathlib import Path

import torch

from sdpo.errors import ModelError
from sdpo.events import EventWriter
from sdpo.identity.adapter_folder import ADAPTER_FILES, adapter_weights, is_adapter
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import copy_tokenizer, load_policy, merge_adapters
from sdpo.model.randomness import own_settings
from sdpo.processes.stage_results import ExportResult
from sdpo.processes.stage_specs import ExportSpec
from sdpo.store.model_card import CARD_FILES, exported
from sdpo.system.files import publish_folder, write_text


def run(spec: ExportSpec, events: EventWriter) -> ExportResult:
    """Write ``spec.source`` as ``spec.out`` in ``spec.dtype``, an adapter merged unless asked."""
    events.phase("load", detail=str(spec.source))
    with publish_folder(spec.out) as temporary:
        if spec.as_adapter:
            _copy_adapter(spec, temporary)
        else:
            _write_weights(spec, temporary)
        copy_tokenizer(spec.source, temporary)
        if missing := [name for name in CARD_FILES if not (spec.source / name).is_file()]:
            told = f"{spec.source} has no {' and no '.join(missing)}"
            events.warning(f"{told}: the copy has no card")
        else:
            _write_card(spec, temporary)
    return ExportResult(out=str(spec.out), dtype=spec.dtype)


def _write_weights(spec: ExportSpec, folder: Path) -> None:
    policy = load_policy(
        spec.source,
        model=spec.model,
        digest=spec.digest,
    )
    policy = merge_adapters(policy).to(getattr(torch, spec.dtype))
    with own_settings(policy):
        policy.save_pretrained(folder, safe_serialization=True)


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
