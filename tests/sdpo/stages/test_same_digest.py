"""The same tensors are published with the same digest, whatever strategy held them."""

import pytest

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import load_policy, save_policy

from ..training_helpers.models import RecordedEvents
from ..training_helpers.ranks import RANKS, on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run, skip_without

SLOW = pytest.mark.slow


def published(rank: int, tell, run: PreparedRun, strategy: str) -> None:
    """Tells the digest of M_0 published in small files as it was loaded."""
    from sdpo.stages.session import open_session

    launch = LaunchConfig(processes=RANKS, strategy=strategy, device="cpu", threads=1)
    model = ModelConfig(name_or_path=str(run.model), max_shard_size=0.0005)
    spec = run.spec(1, TrainingConfig(precision="fp32"), launch=launch, model=model)
    session = open_session(spec, RecordedEvents())
    digest = session.publish()
    session.wait()
    tell(digest)


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp2",
        "deepspeed_zero3",
        pytest.param("ddp", marks=SLOW),
        pytest.param("deepspeed_zero1", marks=SLOW),
        pytest.param("deepspeed_zero2", marks=SLOW),
    ],
)
def test_what_was_not_trained_has_the_digest_that_one_process_gives_it(tmp_path, strategy):
    skip_without(strategy)
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    whole = tmp_path / "whole"
    policy = load_policy(run.model, model=ModelConfig(name_or_path=str(run.model)))
    save_policy(policy, whole, tokenizer=run.model)
    digest = model_digest(whole)
    assert on_ranks(published, run, strategy) == [digest] * RANKS
    folder = run.folder.model(1)
    assert model_digest(folder) == digest
    assert len(list(folder.glob("*.safetensors"))) > 1 == len(list(run.model.glob("*.safetensors")))
    assert not [path for path in folder.parent.iterdir() if path != folder], (
        "no second copy is left"
    )
