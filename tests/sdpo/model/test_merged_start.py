"""An adapter to start from is merged into weights that two processes hold, as peft merges it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.errors import ModelError
from sdpo.model.handed_on import adapter_tensors, save_adapter
from sdpo.model.policy import load_policy

from ..training_helpers.adapted import with_trained_adapters
from ..training_helpers.models import RecordedEvents
from ..training_helpers.ranks import on_ranks
from ..training_helpers.runs import PreparedRun, prepare_run

# Of peft and transformers 5.23, about each other's names.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing(_enable)?` is:FutureWarning"
)
FORMS = {
    "LoRA": {"lora_alpha": 8},
    "DoRA": {"lora_dora": True, "lora_rslora": True, "lora_target_modules": ["q_proj", "up_proj"]},
    "beside a module": {"lora_modules_to_save": ["embed_tokens"]},
}
TWO = LaunchConfig(processes=2, strategy="fsdp2", device="cpu", threads=1)
FRESH = TrainingConfig(precision="fp32", lora_r=4, lora_dora=True)
"""What trains over the merged weights: its magnitudes come from them."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PreparedRun:
    return prepare_run(tmp_path_factory.mktemp("run"), pairs={0: 2, 1: 4})


@pytest.fixture(scope="module")
def starts(run, tmp_path_factory) -> dict[str, Path]:
    """Folders of adapters of each form, after some updates."""
    folders = {}
    for form, settings in FORMS.items():
        base = load_policy(run.model, model=ModelConfig())
        training = TrainingConfig(lora_r=4, **settings)
        adapted = with_trained_adapters(base, training)
        folders[form] = tmp_path_factory.mktemp("adapter")
        tensors = adapter_tensors(adapted)
        save_adapter(adapted, folders[form], tensors=tensors, input_model=run.model)
    return folders


def merged(rank: int, tell, run: PreparedRun, starts: dict[str, Path]) -> None:
    """Tells the weights that this rank's share is of, and the magnitudes of fresh adapters."""
    from sdpo.model.fully_sharded import load_in_shares
    from sdpo.model.published_tensors import whole_tensors
    from sdpo.stages.session import open_session

    session = open_session(
        run.spec(1, TrainingConfig(precision="fp32"), launch=TWO), RecordedEvents()
    )
    found = {}
    for form, folder in starts.items():
        scorer = load_in_shares(
            folder, model=ModelConfig(), device=session.device, fresh=FRESH, merges=True
        )
        names = scorer.model.state_dict()
        found[form] = {n: t.numpy().copy() for n, t in whole_tensors(scorer.model, names)}
    session.wait()
    tell(found)


@pytest.fixture(scope="module")
def found(run, starts) -> list[dict]:
    return on_ranks(merged, run, starts)


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_shares_are_those_that_peft_merges(starts, found, form):
    from peft import PeftModel

    config = json.loads((starts[form] / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    expected = PeftModel.from_pretrained(base, starts[form]).merge_and_unload().state_dict()
    moved = [name for name in before if not torch.equal(before[name], expected[name])]
    assert len(moved) >= 4
    for told in found:
        own = {name.replace(".base_layer", ""): value for name, value in told[form].items()}
        for name, tensor in expected.items():
            value = torch.from_numpy(own[f"base_model.model.{name}"])
            torch.testing.assert_close(value, tensor, rtol=1e-6, atol=1e-7, msg=name)
        lengths = [name for name in own if "lora_magnitude_vector" in name]
        assert lengths
        for name in lengths:
            weight = expected[name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight"]
            lengths_now = torch.from_numpy(own[name])
            torch.testing.assert_close(lengths_now, weight.norm(dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_merging_that_would_part_tied_weights_is_refused(run, tmp_path):
    """An adapter of plain peft may have an embedding of its own, and leave the head as it was."""
    from peft import LoraConfig, get_peft_model

    from sdpo.identity.adapter_folder import base_folder
    from sdpo.identity.model_folder import view_of
    from sdpo.model.merged_start import merged_tensors
    from sdpo.model.policy import empty_policy

    base = AutoModelForCausalLM.from_pretrained(run.model)
    assert base.config.tie_word_embeddings
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.warns(UserWarning, match="tie"):
        adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(run.model)
    adapted.save_pretrained(tmp_path)
    assert base_folder(tmp_path) == run.model
    policy = empty_policy(run.model, model=ModelConfig())
    policy.tie_weights()
    with (
        view_of(tmp_path) as view,
        pytest.raises(ModelError, match=r"which its base ties to .*strategy to ddp"),
    ):
        list(merged_tensors(policy, tmp_path, view, read=lambda name: torch.zeros(0)))
