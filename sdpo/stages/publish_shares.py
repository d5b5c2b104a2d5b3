"""Publish a model that the ranks hold in shares, without any rank that holds it whole."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.errors import DivergedError
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import save_policy
from sdpo.model.published_tensors import forms_of, not_finite, whole_tensors
from sdpo.model.shard_files import plan_files, write_files
from sdpo.processes.stage_specs import StepSpec
from sdpo.stages.shared_files import see_of_all
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
    wait: Callable[[], None],
) -> str:
    """Publish ``policy`` as ``folder``, and return its digest, empty on all ranks but one.

    Every rank writes files of its own. ``wait`` waits for the other ranks.

    Raises:
        DivergedError: a weight is NaN or infinite.
        OSError: a file cannot be written.
    """
    if name := not_finite(policy):
        raise DivergedError(diverged(name))
    forms = forms_of(policy)
    files = plan_files(forms, max_shard_size=spec.model.max_shard_size)
    with ExitStack() as stack:
        place: list[Path] = []
        if accelerator.is_main_process:
            place = [stack.enter_context(publish_folder(folder, replace=True))]
            # Before the weights: transformers removes those that it has not written itself.
            template = spec.model.chat_template
            save_policy(policy, place[0], tokenizer=spec.base, weights={}, chat_template=template)
        here = _of_main(accelerator, place)
        see([ExpectedFile(path=here)])
        write_files(
            here,
            files,
            forms,
            whole_tensors(policy, forms),
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        )
        ranks, rank = accelerator.num_processes, accelerator.process_index
        see_of_all(accelerator, [here / file.name for file in files[rank::ranks]])
        wait()
    return model_digest(folder) if accelerator.is_main_process else ""


def diverged(name: str) -> str:
    """Return the refusal to publish a model that the last update spoiled."""
    return (
        f"after training, {name} has values that are NaN or infinite: nothing of this step "
        "is published. Lower the learning rate"
    )


def _of_main(accelerator: "Accelerator", place: list[Path]) -> Path:
    from accelerate.utils import broadcast_object_list

    told = [str(place[0]) if place else ""]
    broadcast_object_list(told)
    return Path(told[0])
