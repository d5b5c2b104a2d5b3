"""Set up the processes of a stage: accelerate, its process groups, DeepSpeed's settings."""

import os
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import torch

from sdpo.errors import Fault
from sdpo.model.patches import fp32_sums_of_ranks, no_operator_for_inference
from sdpo.processes.stage_specs import StepSpec

if TYPE_CHECKING:
    from accelerate import Accelerator, DeepSpeedPlugin

_PATIENCE = timedelta(minutes=30)
"""A collective of a training that takes longer than this is taken to hang."""
_LONG_PATIENCE = timedelta(hours=12)
"""Other ranks wait this long while the main one saves a large model or writes completions."""


def waiting_group(accelerator: "Accelerator") -> torch.distributed.ProcessGroup | None:
    """Return a group over gloo, whose barrier may last; NCCL would end everything much sooner."""
    if accelerator.num_processes == 1:
        return None
    group: torch.distributed.ProcessGroup = torch.distributed.new_group(
        backend="gloo", timeout=_LONG_PATIENCE
    )
    return group


def make_accelerator(spec: StepSpec) -> "Accelerator":
    """Return the accelerator of this rank.

    Raises:
        Fault: the ranks did not find each other, or something else than DeepSpeed was set up.
    """
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        InitProcessGroupKwargs,
    )

    on_cpu = spec.launch.device == "cpu"
    tracking = spec.tracking.tools if spec.trains else []
    folder = spec.folder / "tracking"
    by_deepspeed, by_fsdp = spec.launch.zero_stage > 0, spec.launch.strategy == "fsdp2"
    backend = "gloo" if on_cpu and by_deepspeed else None
    if by_fsdp and spec.launch.offload != "none":
        backend = "cpu:gloo,cuda:nccl"  # gradients whose norm is taken are in both memories
    group = InitProcessGroupKwargs(backend=backend, timeout=_PATIENCE)
    # Gradients are views of the buckets that travel, not copies of them.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    made = partial(
        Accelerator,
        kwargs_handlers=[group, ddp] if by_deepspeed or spec.launch.processes > 1 else None,
        log_with=list(tracking) or None,
        project_dir=str(folder) if tracking else None,
    )
    if by_deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        accelerator = made(deepspeed_plugin=_deepspeed(spec))
    else:
        # FSDP2 casts the weights itself.
        bf16 = spec.training.precision == "bf16" and not by_fsdp
        accelerator = made(cpu=on_cpu, mixed_precision="bf16" if bf16 else "no")
    if accelerator.num_processes != spec.launch.processes:
        # Processes that do not find each other would each train alone and write over each other.
        raise Fault(
            f"this stage wants {spec.launch.processes} processes and is one of "
            f"{accelerator.num_processes}: accelerate did not set up {spec.launch.strategy}"
        )
    if by_deepspeed != (accelerator.distributed_type == DistributedType.DEEPSPEED):
        raise Fault(
            f"launch.strategy is {spec.launch.strategy}, and accelerate set up "
            f"{accelerator.distributed_type.value}: look for variables ACCELERATE_* in the "
            "environment of the stages"
        )
    return accelerator


def _deepspeed(spec: StepSpec) -> "DeepSpeedPlugin":
    """Return ZeRO over fp32 weights: bf16 is autocast in the engine, what is published is exact."""
    from accelerate import DeepSpeedPlugin

    no_operator_for_inference()
    bf16, stage = spec.training.precision == "bf16", spec.launch.zero_stage
    autocast: dict[str, bool | str | list[str]] = {"enabled": bf16, "dtype": "bfloat16"}
    # Gradients of several ranks are added in fp32, as DDP's are.
    if stage < 3:
        autocast["lower_precision_safe_modules"] = []
    elif bf16:
        fp32_sums_of_ranks()
    zero: dict[str, bool | int | dict[str, str | bool]] = {
        "stage": stage,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if spec.launch.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if spec.launch.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": spec.training.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            # torch's AdamW runs on a CPU as well, and its states are those that are saved.
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "torch_autocast": autocast,
        }
    )
