import hashlib
import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from sdpo.errors import ModelError
from sdpo.identity.model_digest import model_digest, tensor_entries
from sdpo.system import machine


@pytest.fixture
def folder(save_model):
    return save_model(with_tokenizer=False)


def weights(folder):
    return folder / "model.safetensors"


def change_weights(folder, change):
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder), metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_save_by_transformers_keeps_the_digest(folder, tmp_path):
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path / "b")
    assert model_digest(tmp_path / "b") == model_digest(folder)


def test_resharding_keeps_the_digest(folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path / "b", max_shard_size="5KB")
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    assert model_digest(tmp_path / "b") == model_digest(folder)


def test_tensors_are_hashed_side_by_side_in_one_file_and_in_several(folder, tmp_path, monkeypatch):
    """Two threads meet within the hashing of two tensors, which one after the other never do."""
    expected, sha256 = model_digest(folder), hashlib.sha256
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path / "b", max_shard_size="5KB")
    for each in (folder, tmp_path / "b"):
        met = threading.Barrier(2)
        first_two = iter(range(2))

        def hashed(data=b"", met=met, first_two=first_two):
            if isinstance(data, memoryview) and next(first_two, None) is not None:
                met.wait(timeout=30)
            return sha256(data)

        with monkeypatch.context() as patched:
            patched.setattr(machine, "cores", lambda: 2)
            patched.setattr(hashlib, "sha256", hashed)
            assert model_digest(each) == expected


def test_the_digest_is_that_of_a_plain_loop_over_tensors(folder):
    """Written anew from what the digest is said to be: configuration, then each tensor by name."""
    ignored = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"}
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ignored}
    total = hashlib.sha256(plain_json(kept))
    for name, tensor in sorted(load_file(weights(folder)).items()):
        content = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        total.update(plain_json([name, "F32", list(tensor.shape), content]))
    assert model_digest(folder) == total.hexdigest()


def plain_json(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_found_with_its_shape(save_model, tied):
    folder = save_model(with_tokenizer=False, tie_word_embeddings=tied)
    entries = tensor_entries(folder)
    assert [entry.name for entry in entries] == sorted(load_file(weights(folder)))
    assert {e.name: e.shape for e in entries}["model.embed_tokens.weight"] == (64, 16)
    assert ("lm_head.weight" in {e.name for e in entries}) is not tied
    assert all(e.end - e.start == 4 * e.elements for e in entries)


def test_two_folders_of_one_model_have_one_digest(save_model):
    assert model_digest(save_model("a")) == model_digest(save_model("b"))


@pytest.mark.parametrize(
    "key", ["transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"]
)
def test_versions_and_paths_in_the_configuration_do_not_count(folder, key):
    before = model_digest(folder)
    change_config(folder, **{key: "something else"})
    assert model_digest(folder) == before


def test_files_beside_the_weights_do_not_count(folder):
    before = model_digest(folder)
    (folder / "README.md").write_text("a card")
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "other.safetensors").write_bytes(b"not named by any index")
    assert model_digest(folder) == before


def test_one_flipped_weight_changes_the_digest(folder):
    before = model_digest(folder)

    def flip(tensors):
        tensors["model.norm.weight"][3] = torch.nextafter(
            tensors["model.norm.weight"][3], torch.tensor(2.0)
        )

    change_weights(folder, flip)
    assert model_digest(folder) != before


def test_weights_that_changed_places_change_the_digest(folder):
    before = model_digest(folder)

    def swap(tensors):
        a, b = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv")
        tensors[a], tensors[b] = tensors[b], tensors[a]

    change_weights(folder, swap)
    assert model_digest(folder) != before


def test_another_dtype_changes_the_digest(folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "b")
    assert model_digest(tmp_path / "b") != model_digest(folder)


def test_the_same_bytes_under_another_dtype_change_the_digest(folder):
    before = model_digest(folder)

    def reinterpret(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.int32)

    change_weights(folder, reinterpret)
    assert model_digest(folder) != before


def test_the_same_bytes_in_another_shape_change_the_digest(folder):
    before = model_digest(folder)

    def reshape(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].view(4, 4)

    change_weights(folder, reshape)
    assert model_digest(folder) != before


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", 1e-3), ("rope_parameters", {"rope_theta": 5.0})]
)
def test_another_value_in_the_configuration_changes_the_digest(folder, key, value):
    before = model_digest(folder)
    change_config(folder, **{key: value})
    assert model_digest(folder) != before


def test_a_file_that_was_cut_is_refused(folder):
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is cut short: .* ends at byte"):
        model_digest(folder)


@pytest.mark.parametrize("length", [0, 5, 40])
def test_a_file_that_was_cut_in_its_header_is_refused(folder, length):
    weights(folder).write_bytes(weights(folder).read_bytes()[:length])
    with pytest.raises(ModelError, match="header cannot be read"):
        model_digest(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        (2).to_bytes(8, "little") + b"[]",
        (10).to_bytes(8, "little") + b'{"w": "x"}',
    ],
    ids=["noise", "pointer", "list", "text"],
)
def test_a_file_that_is_no_safetensors_is_refused(folder, content):
    weights(folder).write_bytes(content)
    with pytest.raises(ModelError, match="header cannot be read"):
        model_digest(folder)


def test_a_missing_shard_is_refused_by_name(folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path / "b", max_shard_size="5KB")
    shard = sorted((tmp_path / "b").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"names files that are not there: .*{shard.name}"):
        model_digest(tmp_path / "b")


def test_a_folder_of_pickles_is_refused_with_what_to_do(folder):
    weights(folder).rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*convert the model to safetensors"):
        model_digest(folder)


def test_a_folder_without_weights_is_refused(folder):
    weights(folder).unlink()
    with pytest.raises(ModelError, match="no safetensors weights in"):
        model_digest(folder)


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        model_digest(folder)


def test_a_tensor_that_two_files_hold_is_refused(folder):
    """The index says which counts, and transformers loads both: programs differ."""
    tensors = load_file(weights(folder))
    weights(folder).unlink()
    names = sorted(tensors)
    for file, part in (("a.safetensors", names[:3]), ("b.safetensors", names[2:])):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    listed = {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    with pytest.raises(ModelError, match=rf"{names[2]} is in a\.safetensors and in b\.safetensors"):
        model_digest(folder)


@pytest.mark.parametrize("layers", [-1, 0, 1000, 10**9])
def test_layers_that_the_weights_have_not_are_refused_before_they_are_made(folder, layers):
    change_config(folder, num_hidden_layers=layers)
    with pytest.raises(ModelError, match=f"says num_hidden_layers {layers}, and the weights are"):
        tensor_entries(folder)
