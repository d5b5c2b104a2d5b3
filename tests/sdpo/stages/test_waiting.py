"""A collective that hangs is noticed within half an hour; a rank that saves may take half a day."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from sdpo.stages import session as model
from sdpo.stages.session import Session


@pytest.fixture
def one_rank():
    """A process group of this process alone, as accelerate makes it."""
    store = distributed.HashStore()
    distributed.init_process_group(
        "gloo", store=store, rank=0, world_size=1, timeout=model._PATIENCE
    )
    yield
    distributed.destroy_process_group()


def patience(group: object) -> timedelta:
    backend = group._get_backend(torch.device("cpu"))
    return backend.options._timeout


def test_ranks_wait_for_one_that_saves_longer_than_for_each_other(one_rank):
    waiting = model._waiting_group(SimpleNamespace(num_processes=2))
    assert patience(distributed.group.WORLD) == timedelta(minutes=30)
    assert patience(waiting) == timedelta(hours=12)
    session = Session(spec=None, accelerator=None, policy=None, tokenizer=None, waiting=waiting)
    session.wait()


def test_one_process_waits_for_nobody():
    assert model._waiting_group(SimpleNamespace(num_processes=1)) is None
    Session(spec=None, accelerator=None, policy=None, tokenizer=None).wait()
