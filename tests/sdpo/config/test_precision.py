"""The names of a precision: all of them mean one thing."""

import pytest

from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.config.precision import torch_name
from sdpo.errors import ConfigError
from sdpo.identity.canonical import digest_of

BF16 = ("bf16", "bfloat16", "BF16", "torch.bfloat16")
FP32 = ("fp32", "float32", "float", "torch.float32", "FP32", "f32")
FP16 = ("fp16", "float16", "half", "torch.float16")


def of(precision: str) -> RunConfig:
    return make_config({}, overrides=[f"training.precision={precision}"])


@pytest.mark.parametrize(("names", "short"), [(BF16, "bf16"), (FP32, "fp32")])
def test_every_name_is_the_same_setting_and_the_same_identity(
    names: tuple[str, ...], short: str
) -> None:
    for name in names:
        assert of(name).training.precision == short
        assert digest_of(of(name).model_dump()) == digest_of(of(short).model_dump())
        by_step = make_config({"training": {"precision": short}, "steps": [{"precision": name}]})
        assert by_step.training_of(1).precision == short


@pytest.mark.parametrize("name", FP16)
def test_half_precision_is_refused_by_any_name_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match="fp16 is refused: it ends at 65504"):
        of(name)


@pytest.mark.parametrize(
    ("names", "long"), [(BF16, "bfloat16"), (FP32, "float32"), (FP16, "float16")]
)
def test_torchs_name_of_each(names: tuple[str, ...], long: str) -> None:
    assert {torch_name(name) for name in names} == {long}


@pytest.mark.parametrize("name", ["bf17", "", "int8", "auto", "torch", "bf16-mixed"])
def test_another_word_is_no_precision(name: str) -> None:
    assert torch_name(name) is None
