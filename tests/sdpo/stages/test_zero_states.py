"""Parts of ZeRO's flat tensors are collected for any number of ranks, however groups are cut."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdpo.errors import IntegrityError
from sdpo.stages.zero_states import Divided, Flat, own_parts

SIZES = (7, 1, 12, 30, 5)


def divided_each(weights, *, ranks: int) -> list[list[torch.Tensor]]:
    """Each rank's parts of each weight, as ZeRO-3 cuts them."""
    padded = [torch.cat([w, torch.full((-len(w) % ranks,), -1.0)]) for w in weights]
    return [[p.view(ranks, -1)[rank] for p in padded] for rank in range(ranks)]


def stored(folder, parts, *, cuts) -> list[Flat]:
    """Files of ranks whose parts lie end to end, in groups that ``cuts`` begin."""
    found = []
    for rank, own in enumerate(parts):
        groups = np.split(np.arange(len(own)), cuts)
        pieces = {f"w.{i}": torch.cat([own[at] for at in group]) for i, group in enumerate(groups)}
        save_file(pieces, folder / f"{rank}.safetensors")
        found.append(Flat.of(safe_open(folder / f"{rank}.safetensors", framework="pt"), "w"))
    return found


@pytest.mark.parametrize(("before", "now"), [(2, 3), (4, 2), (3, 3), (8, 5), (1, 4)])
def test_weights_that_are_divided_each_are_cut_anew(tmp_path, before, now):
    weights = [torch.arange(1.0, n + 1) * 10**i for i, n in enumerate(SIZES)]
    files = stored(tmp_path, divided_each(weights, ranks=before), cuts=[2])
    groups = [Divided(SIZES[:4], 1), Divided(SIZES[4:], 1)]
    for rank, wanted in enumerate(divided_each(weights, ranks=now)):
        parts = list(own_parts(files, groups, rank=rank, ranks=now))
        assert [len(part) for part in parts] == [sum(map(len, wanted[:4])), len(wanted[4])]
        expected = torch.cat(wanted).clamp(min=0)  # padding is nothing's weight
        assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize(("before", "now"), [(2, 3), (4, 2), (3, 3), (8, 5), (1, 4)])
def test_a_group_that_is_divided_as_a_whole_is_cut_anew(tmp_path, before, now):
    groups = [torch.arange(1.0, 56), torch.arange(100.0, 121)]

    def parts_of(ranks: int) -> list[list[torch.Tensor]]:
        padded = [torch.cat([g, torch.zeros(-len(g) % (2 * ranks))]) for g in groups]
        return [[p.view(ranks, -1)[rank] for p in padded] for rank in range(ranks)]

    files = stored(tmp_path, parts_of(before), cuts=[1])
    for rank, wanted in enumerate(parts_of(now)):
        divided = [Divided((len(g),), 2) for g in groups]
        found = list(own_parts(files, divided, rank=rank, ranks=now))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_parts_of_other_weights_are_refused(tmp_path):
    files = stored(tmp_path, divided_each([torch.ones(7), torch.ones(9)], ranks=2), cuts=[1])
    with pytest.raises(IntegrityError, match="are not those of 2 ranks that share these weights"):
        list(own_parts(files, [Divided((7, 12), 1)], rank=0, ranks=3))
