"""A training in shares goes on where it was, on as many ranks as there are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.errors import IntegrityError

from ..training_helpers.models import RecordedEvents, preference_task
from ..training_helpers.ranks import on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run

TRAINING = TrainingConfig(
    precision="fp32", batch_size=4, epochs=3, learning_rate=1e-3, seed=3, layout="padded"
)
ITEMS, SAVED = 8, 3


def trained(rank: int, tell, run: PreparedRun, ranks: int, state: Path, resumes: bool) -> None:
    """Tells losses and norms by optimizer step, and how many ranks wrote the state."""
    from sdpo.stages.session import open_session
    from sdpo.stages.training_state import load_training, save_training

    launch = LaunchConfig(processes=ranks, strategy="fsdp2", device="cpu", threads=1)
    session = open_session(run.spec(1, TRAINING, launch=launch), RecordedEvents())
    trainer, task = session.trainer(TRAINING), preference_task(ITEMS)
    told = {"curve": {}, "ranks": ranks}
    if resumes:
        told["ranks"] = load_training(trainer, state, held="rows")
        trainer.progress.step = SAVED

    def on_step(number: int, total: int, metrics: dict[str, float]) -> None:
        told["curve"][number] = (metrics["loss"], metrics["grad_norm"])
        if number == SAVED:
            save_training(trainer, state, held="rows")
            session.wait()

    trainer.train(task, on_step=on_step)
    session.wait()
    tell(told)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PreparedRun:
    return prepare_run(tmp_path_factory.mktemp("run"), pairs={0: 2, 1: 4})


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def first(run, state) -> list[dict]:
    return on_ranks(trained, run, 2, state, False)


def test_each_rank_saves_its_rows_alone(run, state, first):
    rows = [load_file(state / f"rows-{rank}.safetensors") for rank in range(2)]
    name = "weight:model.model.embed_tokens.weight"
    whole = load_file(run.model / "model.safetensors")
    assert sum(len(each[name]) for each in rows) == len(whole["model.embed_tokens.weight"])
    assert {key.partition(":")[0] for key in rows[0]} == {"weight", "exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_curve_goes_on_with_any_number_of_ranks(run, state, first, ranks):
    found = on_ranks(trained, run, ranks, state, True, ranks=ranks)
    expected = {n: values for n, values in first[0]["curve"].items() if n > SAVED}
    assert len(expected) == 3
    for told in found:
        assert told["ranks"] == 2, "those that wrote the state are known"
        assert told["curve"].keys() == expected.keys()
        for number, values in expected.items():
            if ranks == 2:
                assert told["curve"][number] == values, "the same ranks give the same bits"
            else:
                np.testing.assert_allclose(told["curve"][number], values, rtol=1e-4, atol=1e-4)


def damaged(rank: int, tell, run: PreparedRun, state: Path) -> None:
    """Tells what is said of a state that has another tensor than the training."""
    from sdpo.stages.session import open_session
    from sdpo.stages.training_state import load_training

    launch = LaunchConfig(processes=2, strategy="fsdp2", device="cpu", threads=1)
    session = open_session(run.spec(1, TRAINING, launch=launch), RecordedEvents())
    trainer, said = session.trainer(TRAINING), ""
    try:
        load_training(trainer, state, held="rows")
    except IntegrityError as error:
        said = str(error)
    session.wait()
    tell(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows | {"weight:model.more": torch.ones(1)}, "of nothing here: weight:model"),
        (lambda rows: {k: v[:1] if v.dim() else v for k, v in rows.items()}, "another shape"),
    ],
    ids=["a tensor more", "rows that are missing"],
)
@pytest.mark.slow
def test_a_state_of_other_tensors_is_refused(run, state, first, tmp_path, change, said):
    for file in state.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for rank in range(2):
        file = tmp_path / f"rows-{rank}.safetensors"
        save_file(change(load_file(file)), file)
    for message in on_ranks(damaged, run, tmp_path):
        assert said in message
