"""What the chain knows of a model's tokens before a stage makes any."""

import json
from pathlib import Path

import pytest

from sdpo.chain.tokens import end_token_ids
from sdpo.errors import ModelError


def folder_of(path: Path, ends: object) -> Path:
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path


@pytest.mark.parametrize(("ends", "found"), [(None, []), (2, [2]), ([2, 7], [2, 7]), ([], [])])
def test_a_model_stops_at_the_tokens_of_its_generation_config(
    tmp_path: Path, ends: object, found: list[int]
) -> None:
    assert end_token_ids(folder_of(tmp_path, ends)) == found


@pytest.mark.parametrize("ends", [-5, [2, -1], 2**31, 10**30, "2", {"a": 1}, [[2]], True, 2.0])
def test_what_is_no_token_id_is_one_message(tmp_path: Path, ends: object) -> None:
    with pytest.raises(ModelError, match="and a token id is a number from 0"):
        end_token_ids(folder_of(tmp_path, ends))
