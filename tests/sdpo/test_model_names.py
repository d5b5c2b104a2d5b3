import pytest

from sdpo.errors import Fault
from sdpo.model_names import ModelName


@pytest.mark.parametrize("step", [0, 1, 12])
def test_a_name_knows_its_step_and_its_text(step):
    name = ModelName(step)
    assert str(name) == f"M_{step}"
    assert ModelName.of(str(name)) == name


@pytest.mark.parametrize(
    "text", ["guide-2", "M_", "M_x", "M_-1", "M_²", "2", "", "m_2", "M_1/step-1"]
)
def test_what_is_not_the_name_of_a_steps_model_is_refused(text):
    with pytest.raises(Fault, match="is not the name of a step's model"):
        ModelName.of(text)
