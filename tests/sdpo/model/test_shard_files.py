"""Weights written tensor by tensor, by several ranks, are the files that transformers writes."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from sdpo.config import ModelConfig
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import load_policy
from sdpo.model.published_tensors import forms_of, whole_tensors
from sdpo.model.shard_files import GB, File, Form, plan_files, write_files


def test_tensors_fill_files_in_their_order_and_a_large_one_has_its_own():
    forms = {n: Form(torch.float32, (s,)) for n, s in [("a", 10), ("b", 5), ("c", 50), ("d", 1)]}
    files = plan_files(forms, max_shard_size=64 / GB)
    assert [file.tensors for file in files] == [("a", "b"), ("c",), ("d",)]
    assert [file.name for file in files] == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    whole = File("model.safetensors", tuple(forms))
    assert plan_files(forms, max_shard_size=1.0) == [whole]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_write_what_transformers_writes(save_model, tmp_path, tied, ranks):
    folder = save_model(with_tokenizer=False, tie_word_embeddings=tied)
    policy = load_policy(folder, model=ModelConfig())
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    policy.save_pretrained(theirs, max_shard_size="5KB")
    policy.save_pretrained(ours, state_dict={})
    forms = forms_of(policy)
    files = plan_files(forms, max_shard_size=5000 / GB)
    assert len(files) > ranks
    for rank in range(ranks):
        tensors = whole_tensors(policy, forms)
        write_files(ours, files, forms, tensors, rank=rank, ranks=ranks)
    assert model_digest(ours) == model_digest(theirs)
    index, other = (
        json.loads((f / "model.safetensors.index.json").read_text()) for f in (ours, theirs)
    )
    assert index["metadata"] == other["metadata"]
    assert index["weight_map"].keys() == other["weight_map"].keys()
    with safe_open(ours / files[0].name, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    again = LlamaForCausalLM.from_pretrained(ours, dtype=torch.float32)
    for (name, value), (_, same) in zip(
        policy.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(value, same), name


def test_a_tensor_that_comes_out_of_turn_or_in_another_form_is_refused(tmp_path):
    forms = {"a": Form(torch.float32, (2,)), "b": Form(torch.float32, (2,))}
    files = plan_files(forms, max_shard_size=1.0)
    with pytest.raises(ValueError, match="b comes where"):
        write_files(tmp_path, files, forms, [("b", torch.ones(2)), ("a", torch.ones(2))])
    with pytest.raises(ValueError, match="a is no longer"):
        write_files(tmp_path, files, forms, [("a", torch.ones(3)), ("b", torch.ones(2))])
