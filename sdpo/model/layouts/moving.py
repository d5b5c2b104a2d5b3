"""Move tensors to a device."""

import torch


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``tensor`` on ``device``.

    To a GPU it goes from pinned memory: from other memory the processor would wait until the device
    has computed what it was given, and lay out the next micro-batch only then. As it does not wait,
    it is ahead by a micro-batch, and no thread has to prepare one: laying out takes milliseconds of
    Python, of which one thread runs at a time, and the other one launches the kernels.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
