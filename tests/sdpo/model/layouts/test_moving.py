"""All of a batch comes to its device, and to a GPU from pinned memory."""

from dataclasses import fields

import pytest
import torch

from sdpo.model.layouts import LAYOUTS
from sdpo.model.layouts.moving import moved

from ...training_helpers.layouts import batch, pairs

META = torch.device("meta")


class Recorded:
    """A tensor of the processor that writes down how it is moved: none can be pinned without a
    GPU."""

    def __init__(self) -> None:
        self.device, self.done = torch.device("cpu"), []

    def pin_memory(self) -> "Recorded":
        self.done.append("pinned")
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> "Recorded":
        self.done.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "done"), [("cuda", ["pinned", ("cuda", True)]), ("cpu", [("cpu", True)])]
)
def test_a_tensor_comes_to_a_gpu_from_pinned_memory(device, done):
    tensor = Recorded()
    assert moved(tensor, torch.device(device)) is tensor
    assert tensor.done == done


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_a_batch_is_moved_and_says_the_same(layout):
    here = batch(layout, pairs(3))
    there = here.to(META)
    for field in fields(here):
        mine, other = getattr(here, field.name), getattr(there, field.name)
        if isinstance(mine, torch.Tensor):
            assert (other.device, other.shape, other.dtype) == (META, mine.shape, mine.dtype)
        elif field.name != "segments":
            assert other == mine, field.name
    assert here.to(torch.device("cpu")) is here
    if here.segments:
        rows = there.segments
        assert {t.device for t in (rows.positions, rows.group, rows.part)} == {META}
        assert rows.sequences()[0].device == META
        assert rows.parts == here.segments.parts


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_mask_of_a_row_stands_on_the_rows_device(layout):
    row = LAYOUTS[layout].collate(pairs(3), pad_token_id=0, device="cuda").to(META)
    mask = row.segments.block_mask(None)
    tensors = [part for part in vars(mask).values() if isinstance(part, torch.Tensor)]
    assert tensors
    assert {tensor.device for tensor in tensors} == {META}
