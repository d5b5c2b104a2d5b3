"""Write a copy of a model in another precision, as a stage."""

from pathlib import Path

import torch

from sdpo.config import ModelConfig
from sdpo.events import EventWriter
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import copy_tokenizer, load_policy
from sdpo.model.randomness import own_settings
from sdpo.processes.stage_results import ExportResult
from sdpo.processes.stage_specs import ExportSpec
from sdpo.store.model_card import CARD_FILES, exported
from sdpo.system.files import publish_folder, write_text


def run(spec: ExportSpec, events: EventWriter) -> ExportResult:
    """Write ``spec.source`` as ``spec.out`` in ``spec.dtype``."""
    events.phase("load", detail=str(spec.source))
    policy = load_policy(
        spec.source,
        model=ModelConfig(trust_remote_code=spec.model.trust_remote_code),
        digest=spec.digest,
    )
    policy = policy.to(getattr(torch, spec.dtype))
    with publish_folder(spec.out) as temporary:
        with own_settings(policy):
            policy.save_pretrained(temporary, safe_serialization=True)
        copy_tokenizer(spec.source, temporary)
        if missing := [name for name in CARD_FILES if not (spec.source / name).is_file()]:
            told = f"{spec.source} has no {' and no '.join(missing)}"
            events.warning(f"{told}: the copy has no card")
        else:
            _write_card(spec, temporary)
    return ExportResult(out=str(spec.out), dtype=spec.dtype)


def _write_card(spec: ExportSpec, folder: Path) -> None:
    """Write the card of the model in ``folder``, which says of which model it is a copy."""
    texts = {n: (spec.source / n).read_text(encoding="utf-8") for n in CARD_FILES}
    if spec.dtype != "float32":  # in which it was published
        texts = exported(texts, dtype=spec.dtype, model=model_digest(folder))
    for name, text in texts.items():
        write_text(folder / name, text)
