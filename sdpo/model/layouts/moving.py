"""How tensors come to a device."""

import torch


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``.

    To a GPU it goes from pinned memory: from any other the processor would wait until the device
    has computed what it was given, and lay out the next micro-batch only then.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
