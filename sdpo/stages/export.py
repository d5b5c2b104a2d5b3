"""The stage that writes a copy of a model in another precision."""

import torch

from sdpo.config import ModelConfig
from sdpo.events import EventWriter
from sdpo.model.policy import copy_tokenizer, load_policy
from sdpo.model.randomness import own_settings
from sdpo.processes.stage_results import ExportResult
from sdpo.processes.stage_specs import ExportSpec
from sdpo.system.files import publish_folder


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
        for name in ("README.md", "lineage.json"):
            if (spec.source / name).is_file():
                (temporary / name).write_bytes((spec.source / name).read_bytes())
    return ExportResult(out=str(spec.out), dtype=spec.dtype)
