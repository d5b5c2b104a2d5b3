"""Nothing stands in for the code of an architecture that was not compared, and that is said."""

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from sdpo.config import TrainingConfig
from sdpo.inputs import demo
from sdpo.model.compared import COMPARED, was_compared
from sdpo.model.patches import has_own_forward
from sdpo.model.prepare import prepare
from sdpo.stages.session import open_session

from ..training_helpers.layouts import small_model
from ..training_helpers.models import RecordedEvents, accelerator
from ..training_helpers.runs import prepare_run

TABLE = Path(__file__).parents[3] / "docs" / "architectures.md"
CPU = torch.device("cpu")


class MadeUpConfig(LlamaConfig):
    model_type = "made_up"


class MadeUpForCausalLM(LlamaForCausalLM):
    """A Llama by every formula, of a name that nobody knows."""

    config_class = MadeUpConfig


def replaced(policy) -> list[str]:
    """Modules whose forward is not their class's, but for the head."""
    head = policy.get_output_embeddings()
    named = policy.named_modules()
    return [name for name, module in named if has_own_forward(module) and module is not head]


def test_the_architectures_that_were_compared_are_those_of_the_table():
    rows = re.findall(r"^\| ([\w+-]+) \| \w+ \| (?!refused)", TABLE.read_text("utf-8"), re.M)
    assert {row.partition("+")[0] for row in rows} - {"architecture"} == COMPARED


def test_an_unknown_architecture_with_known_formulas_keeps_its_own_code():
    settings = small_model("llama").config.to_dict()
    settings.pop("model_type")
    unknown = MadeUpForCausalLM(MadeUpConfig(**settings)).eval()
    assert prepare(unknown, device=CPU) == []
    assert not replaced(unknown)
    assert prepare(unknown, device=CPU, fused=True), "its formulas would be recognised"


def test_code_of_its_own_is_not_taken_for_the_architecture_whose_name_it_has():
    class Mine(LlamaForCausalLM):
        pass

    known = small_model("llama")
    mine = Mine(known.config).eval()
    assert was_compared(known)
    assert not was_compared(mine)
    assert prepare(mine, device=CPU) == []
    assert prepare(known, device=CPU)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stage_says_that_it_uses_an_architectures_own_code(tmp_path):
    AutoConfig.register("made_up", MadeUpConfig, exist_ok=True)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM, exist_ok=True)
    source = demo.materialise("demo:tiny-llama", tmp_path / "demo")
    settings = AutoConfig.from_pretrained(source).to_dict()
    settings.pop("model_type")
    tokenizer = AutoTokenizer.from_pretrained(source)
    MadeUpForCausalLM(MadeUpConfig(**settings)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(
        (source / "generation_config.json").read_text("utf-8"), "utf-8"
    )
    told = {}
    for name, model in (("made up", tmp_path / "model"), ("llama", source)):
        run = prepare_run(tmp_path / name, pairs={1: 2}, model=model)
        accelerator()
        events = RecordedEvents()
        session = open_session(run.spec(1, TrainingConfig(precision="fp32")), events)
        told[name] = [str(event) for event in events.all if "own code alone is used" in str(event)]
        assert bool(replaced(session.policy)) == (name == "llama")
    assert len(told["made up"]) == 1
    assert "MadeUpForCausalLM is no architecture" in told["made up"][0]
    assert told["llama"] == []
