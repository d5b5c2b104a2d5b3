"""Sum the losses and metrics of many micro-batches."""

from typing import TYPE_CHECKING

import torch

from sdpo.model.routers import balance_loss
from sdpo.training.tasks import ItemLosses

if TYPE_CHECKING:
    from accelerate import Accelerator

Metrics = dict[str, float]


class Sums:
    """Sums add up losses and metrics over the micro-batches of this rank, then over all ranks.

    ``router_weight`` is the weight of the routers' load-balancing loss over all micro-batches.
    """

    def __init__(self, accelerator: "Accelerator", *, router_weight: float = 0.0) -> None:
        self._accelerator = accelerator
        self._router_weight = router_weight
        self._load = torch.zeros((2, 0), dtype=torch.float64, device=accelerator.device)
        self._loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self._items = 0
        self._metrics: dict[str, torch.Tensor] = {}

    def add(self, losses: ItemLosses) -> None:
        """Add the losses, metrics and router load of a micro-batch."""
        self._loss += losses.loss.detach().double().sum()
        self._items += len(losses.loss)
        for name, values in losses.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + values.double().sum()
        if losses.load is not None:
            load = losses.load.detach()
            self._load = self._load + load if self._load.numel() else load

    def means(self, *, weight: float) -> Metrics:
        """Return loss per ``weight`` and metrics per item; all ranks have the same names."""
        names = sorted(self._metrics)
        zero = torch.zeros_like(self._loss)
        parts = [self._loss, zero + self._items, *(self._metrics[name] for name in names)]
        whole = torch.cat([torch.stack(parts), self._load.flatten()])
        whole = self._accelerator.reduce(whole, "sum")
        loss, items, *metrics = whole[: len(parts)].tolist()
        means = {name: value / items for name, value in zip(names, metrics, strict=True)}
        if not self._router_weight:
            return {"loss": loss / weight, **means}
        aux_loss = float(balance_loss(whole[len(parts) :].view(2, -1)))
        total = loss / weight + self._router_weight * aux_loss
        return {"loss": total, **means, "aux_loss": aux_loss}
