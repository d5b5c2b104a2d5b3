"""A stage with flash-attn's kernels, or what refuses and computes as they do, from load to
publication."""

import flash_stub
import pytest
from forked_stages import forked_stages

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.processes.supervisor import run_stage

from ..training_helpers.runs import PreparedRun, prepare_run

WITH_ITS_KERNELS = """
import flash_stub

def told(*tensors):
    dtypes = {str(tensor.dtype) for tensor in tensors}
    print("the kernel gets", *sorted(dtypes), flush=True)
    own(*tensors)

own, flash_stub.check_dtypes = flash_stub.check_dtypes, told
flash_stub.install()
"""


def trained(run: PreparedRun, attention: str, layout: str) -> tuple[list[float], str]:
    """Losses of step 1, and the stage's log."""
    model = ModelConfig.model_validate({"name_or_path": str(run.model), "attention": attention})
    training = TrainingConfig(
        learning_rate=1e-3, batch_size=4, precision="bf16", layout=layout, warmup_ratio=0.0
    )
    spec = run.spec(1, training, model=model)
    events: list[dict] = []
    with forked_stages(first=WITH_ITS_KERNELS):
        run_stage(spec, listen=events.append)
    assert not [event for event in events if event["event"] == "warning"]
    losses = [line["loss"] for line in run.metrics(1) if "loss" in line]
    return losses, spec.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_from_load_to_publication_its_kernels_get_what_they_take(tmp_path, layout):
    run = prepare_run(tmp_path / "run", pairs={0: 4, 1: 8})
    losses, log = trained(run, "flash_attention_2", layout)
    told = {line for line in log.splitlines() if line.startswith("the kernel gets")}
    assert told == {"the kernel gets torch.bfloat16"}
    assert flash_stub.REFUSAL not in log
    plain, _ = trained(prepare_run(tmp_path / "plain", pairs={0: 4, 1: 8}), "sdpa", "padded")
    assert losses == pytest.approx(plain, abs=0.02)
