"""A collective that hangs is noticed within half an hour, a rank that saves may take half a day,
and ranks that have parted wait for nothing."""

import os
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from sdpo.config import LaunchConfig, TrackingConfig, TrainingConfig
from sdpo.stages import accelerators as model
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
    waiting = model.waiting_group(SimpleNamespace(num_processes=2))
    assert patience(distributed.group.WORLD) == timedelta(minutes=30)
    assert patience(waiting) == timedelta(hours=12)
    session = Session(spec=None, accelerator=None, policy=None, tokenizer=None, waiting=waiting)
    session.wait()


def test_groups_of_a_training_have_the_shorter_patience_and_gradients_are_views_of_what_travels(
    tmp_path, monkeypatch
):
    made = {}

    def accelerator(**options):
        made.update(options)
        return SimpleNamespace(num_processes=2, distributed_type="MULTI_CPU")

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    spec = SimpleNamespace(
        launch=LaunchConfig(processes=2, strategy="ddp", device="cpu", threads=1),
        tracking=TrackingConfig(),
        trains="preference",
        folder=tmp_path,
        training=TrainingConfig(precision="fp32"),
    )
    model.make_accelerator(spec)
    group, ddp = made["kwargs_handlers"]
    assert group.timeout == timedelta(minutes=30)
    assert ddp.gradient_as_bucket_view, "else each gradient has a copy: 4 bytes a parameter"


def test_one_process_waits_for_nobody():
    assert model.waiting_group(SimpleNamespace(num_processes=1)) is None
    Session(spec=None, accelerator=None, policy=None, tokenizer=None).wait()


def test_the_groups_of_ranks_that_have_parted_are_not_freed(one_rank, monkeypatch):
    kept: list[object] = []
    monkeypatch.setattr("sdpo.stages.session._PARTED", kept)
    waiting, world = distributed.new_group(backend="gloo"), distributed.group.WORLD
    accelerator = SimpleNamespace(
        state=SimpleNamespace(destroy_process_group=lambda: None)  # the fixture destroys it
    )
    Session(
        spec=None, accelerator=accelerator, policy=None, tokenizer=None, waiting=waiting
    ).close()
    assert kept == [waiting, world]


@pytest.mark.parametrize(("processes", "frees"), [(1, True), (2, False)])
def test_one_of_several_processes_ends_without_freeing_what_it_holds(processes, frees):
    """What it has printed is there, and its exit code is what it ends with."""
    code = (
        "import atexit; from sdpo.stages.__main__ import _end; "
        "atexit.register(print, 'freed'); print('told'); _end(3)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"WORLD_SIZE": str(processes)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 3
    assert ended.stdout.split() == ["told", "freed"][: 1 + frees]
