"""Publish a model that the ranks hold in shares, without any rank that holds it whole."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.errors import DivergedError
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import save_policy
from sdpo.model.published_tensors import forms_of, not_finite, whole_tensors
from sdpo.model.shard_files import plan_files, write_files
from sdpo.model.share import share_of
from sdpo.processes.stage_specs import StepSpec
from sdpo.system.files import publish_folder
from sdpo.system.seen import ExpectedFile, see

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def publish_shares(
    policy: "PreTrainedModel",
    folder: Path,
    *,
    spec: StepSpec,
    accelerator: "Accelerator",
) -> str:
    """Publish ``policy`` as ``folder``, and return its digest, empty on all ranks but one.

    Every rank writes files of its own.

    Raises:
        DivergedError: a weight is NaN or infinite.
        OSError: a file cannot be written.
    """
    if name := not_finite(policy):
        raise DivergedError(diverged(name))
    share, forms = share_of(accelerator), forms_of(policy)
    files = plan_files(forms, max_shard_size=spec.model.max_shard_size)
    with ExitStack() as stack:
        here = folder
        if share.is_first:
            here = stack.enter_context(publish_folder(folder, replace=True))
            # Before the weights: transformers removes those that it has not written itself.
            template = spec.model.chat_template
            save_policy(policy, here, tokenizer=spec.base, weights={}, chat_template=template)
        here = share.of_first(here)
        see([ExpectedFile(path=here)])
        write_files(
            here,
            files,
            forms,
            whole_tensors(policy, forms),
            rank=share.rank,
            ranks=share.count,
        )
        share.seen_by_all([here / file.name for file in files[share.rank :: share.count]])
    return model_digest(folder) if share.is_first else ""


def diverged(name: str) -> str:
    """Return the refusal to publish a model that the last update spoiled."""
    return (
        f"after training, {name} has values that are NaN or infinite: nothing of this step "
        "is published. Lower the learning rate"
    )
