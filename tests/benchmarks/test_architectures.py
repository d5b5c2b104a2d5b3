"""Two steps of every causal architecture in tiny form are those of plain transformers code."""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.architectures import MOST_NATS, measure, table
from benchmarks.small_models import LEFT_OUT, MOST_USED, VARIANTS, names

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def check(name: str, tmp_path) -> None:
    found = measure(name, tmp_path)
    assert found.right, table([found])


@pytest.mark.parametrize("name", MOST_USED)
def test_the_most_used_architectures_are_right(name, tmp_path):
    found = measure(name, tmp_path)
    assert not found.refused
    assert found.difference <= MOST_NATS
    assert found.moved <= MOST_NATS
    assert found.first_loss <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in MOST_USED])
def test_every_other_architecture_is_right_or_refused(name, tmp_path):
    check(name, tmp_path)


def test_a_model_that_draws_its_experts_is_refused_by_name(tmp_path):
    assert "PhimoeForCausalLM is another model in training" in measure("phimoe", tmp_path).refused


def test_every_architecture_is_in_the_table_or_left_out_with_a_reason():
    assert set(names()) | LEFT_OUT.keys() >= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert all(LEFT_OUT.values())
    assert len(set(names()) - VARIANTS.keys()) >= 60
    assert set(MOST_USED) <= set(names())
