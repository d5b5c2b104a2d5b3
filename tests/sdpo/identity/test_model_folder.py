"""What is digested is what is loaded, whatever else lies in the folder."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from sdpo.chain.tokens import end_token_ids
from sdpo.config import ModelConfig
from sdpo.errors import ModelError
from sdpo.identity.model_digest import model_digest
from sdpo.identity.model_folder import check_folder, tokenizer_files, unused_files, view_of
from sdpo.identity.tokenizer_digest import tokenizer_digest
from sdpo.model.policy import copy_tokenizer, load_policy, save_policy
from sdpo.tokens.load import load_tokenizer


@pytest.fixture
def folder(save_model) -> Path:
    return save_model()


@pytest.fixture
def sharded(make_llama, tokenizer, tmp_path) -> Path:
    make_llama().save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    tokenizer.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.fixture
def other_weights(make_llama, tmp_path) -> Path:
    make_llama(seed=1).save_pretrained(tmp_path / "other")
    return tmp_path / "other" / "model.safetensors"


def load(folder: Path):
    return load_policy(folder, model=ModelConfig())


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_refused(folder: Path, fragment: str) -> None:
    """By whatever looks at the folder: none of them takes what another one does not."""
    for look in (check_folder, model_digest, load):
        with pytest.raises(ModelError, match=fragment):
            look(folder)


def test_shards_beside_a_whole_file_are_refused(sharded, other_weights):
    shutil.copyfile(other_weights, sharded / "model.safetensors")
    assert_refused(sharded, r"two sets of weights: .*model\.safetensors, which transformers would")


def test_an_index_of_more_than_the_whole_file_is_refused(folder, sharded):
    names = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    shard = sorted(set(names.values()))[0]
    shutil.copyfile(sharded / shard, folder / shard)
    mapped = {"a": "model.safetensors", "b": shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    assert_refused(folder, "two sets of weights")


def test_an_index_of_the_whole_file_alone_keeps_its_digest(folder):
    before = model_digest(folder)
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert model_digest(folder) == before
    load(folder)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_beside_full_weights_is_refused(folder, make_llama):
    adapted = get_peft_model(make_llama(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").is_file()
    assert_refused(folder, r"adapter_config\.json\), which transformers would put over them")


@pytest.mark.parametrize("where", ["top", "nested"])
def test_a_configuration_that_names_other_weights_is_refused(folder, other_weights, where):
    shutil.copyfile(other_weights, folder / "evil.safetensors")
    redirection = {"transformers_weights": "evil.safetensors"}
    edit(
        folder / "config.json",
        **(redirection if where == "top" else {"text_config": redirection}),
    )
    assert_refused(folder, r"transformers_weights: 'evil\.safetensors'")


def test_a_configuration_that_names_its_own_weights_is_loaded(folder):
    edit(folder / "config.json", transformers_weights="model.safetensors")
    check_folder(folder)
    load(folder)


def test_a_configuration_that_is_in_another_file_is_refused(folder):
    shutil.copyfile(folder / "config.json", folder / "config.4.0.0.json")
    edit(folder / "config.json", configuration_files=["config.4.0.0.json"])
    assert_refused(folder, r"configuration_files: config\.4\.0\.0\.json")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/nowhere/model.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(sharded, other_weights, name):
    assert other_weights.is_file()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert_refused(sharded, "names a file outside the folder")


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, []])
def test_an_index_of_another_shape_is_refused(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(content))
    assert_refused(sharded, r"index\.json is damaged")


def add_what_hubs_have(folder: Path, other_weights: Path) -> None:
    """What real folders of the hub have beside the model, all with other weights or a stop."""
    (folder / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors", "x.safetensors"):
        shutil.copyfile(other_weights, folder / name)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    for name in ("README.md", "LICENSE", ".gitattributes"):
        (folder / name).write_text("words")


def test_files_that_are_not_used_change_nothing_and_are_listed(folder, other_weights):
    before, expected = model_digest(folder), load(folder).state_dict()
    add_what_hubs_have(folder, other_weights)
    assert model_digest(folder) == before
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, expected[name])
    unused = ["consolidated.safetensors", "modeling_own.py", "original/", "pytorch_model.bin"]
    assert unused_files(folder) == [*unused, "x.safetensors"]
    assert unused_files(folder, code=True) == [
        n for n in [*unused, "x.safetensors"] if n[-2:] != "py"
    ]


def test_a_view_has_the_digested_files_alone_and_copies_none(sharded, other_weights):
    add_what_hubs_have(sharded, other_weights)
    with view_of(sharded) as view:
        names = {str(path.relative_to(view)) for path in view.rglob("*")}
        assert all(path.is_symlink() for path in view.iterdir())
        assert {path.resolve().parent for path in view.iterdir()} == {sharded}
        assert view.name == sharded.name
    shards = {path.name for path in sharded.glob("model-*.safetensors")}
    assert shards < names
    assert names - shards == {
        *("config.json", "generation_config.json", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert not view.exists()


def test_weights_that_are_swapped_while_they_are_loaded_are_noticed(folder, other_weights):
    with pytest.raises(ModelError, match="was changed while the model was loaded"), view_of(folder):
        other_weights.replace(folder / "model.safetensors")


def test_a_model_of_another_digest_is_not_loaded(folder, other_weights):
    digest = model_digest(folder)
    load_policy(folder, model=ModelConfig(), digest=digest)
    shutil.copyfile(other_weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"not {digest}"):
        load_policy(folder, model=ModelConfig(), digest=digest)


def test_a_snapshot_of_the_hub_is_loaded_through_its_links(folder, tmp_path):
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    check_folder(snapshot)
    assert model_digest(snapshot) == model_digest(folder)
    assert load_tokenizer(snapshot)("w4 w5").input_ids == load_tokenizer(folder)("w4 w5").input_ids
    load(snapshot)
    copied = tmp_path / "copied"
    copied.mkdir()
    copy_tokenizer(snapshot, copied)
    assert not any(path.is_symlink() for path in copied.iterdir())
    assert tokenizer_digest(copied) == tokenizer_digest(folder)


def test_weights_may_lie_on_another_disk(folder, tmp_path):
    expected = model_digest(folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert model_digest(folder) == expected
    load(folder)


PUBLISHED = [
    *("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"),
    *("vocab.txt", "tokenizer.model", "added_tokens.json", "additional_chat_templates/x.jinja"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_link_that_leads_out_of_the_folder_is_refused_by_name(folder, tmp_path, name):
    path, secret = folder / name, tmp_path / "secret"
    secret.write_bytes(path.read_bytes() if path.is_file() else b"{}")
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    with pytest.raises(ModelError, match=rf"{path.name} is a link to .*secret, outside"):
        check_folder(folder)
    with pytest.raises(ModelError, match="outside the model's folder"):
        copy_tokenizer(folder, tmp_path / "out") if name in copied(folder) else load(folder)
    assert not (tmp_path / "out" / name).exists()


def copied(folder: Path) -> list[str]:
    patterns = ("tokenizer*", "*.jinja", "vocab*", "added*", "additional_chat_templates/*")
    return [str(p.relative_to(folder)) for pattern in patterns for p in folder.glob(pattern)]


def test_a_folder_of_templates_that_leads_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.jinja").write_text("a")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "templates")
    with pytest.raises(ModelError, match="outside the model's folder"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "vocab.txt"])
@pytest.mark.parametrize("kind", ["dangling", "loop", "pipe"])
def test_what_is_no_file_is_refused_before_training(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "dangling" else name)
    said = "neither a file nor a folder" if kind == "pipe" else "leads nowhere"
    with pytest.raises(ModelError, match=rf"{path.name} is .*{said}"):
        check_folder(folder)


def test_a_link_within_the_folder_is_followed(folder):
    (folder / "real.json").write_text((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("real.json")
    check_folder(folder)
    assert folder / "tokenizer_config.json" in tokenizer_files(folder)


DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000


@pytest.mark.parametrize(
    "content",
    [DEEP, LONG, "[]", '"text"', "null", '{"model_type": "\\ud800"}', "\xff", f'{{"a": {LONG}}}'],
    ids=["deep", "long", "list", "text", "null", "surrogate", "latin", "integer"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_of_another_shape_is_refused_with_one_message(folder, name, content):
    (folder / name).write_bytes(content.encode("latin-1"))
    digest = model_digest if name == "config.json" else tokenizer_digest
    with pytest.raises(ModelError, match=r"\.json.* is damaged"):
        digest(folder)


ODD = [
    {"model_type": 7},
    {"vocab_size": "many"},
    {"rope_parameters": [1, 2]},
    {"hidden_size": 10**30},
    {"text_config": 3},
    {"quantization_config": "x"},
]


@pytest.mark.parametrize("values", ODD, ids=[next(iter(values)) for values in ODD])
def test_an_odd_configuration_is_refused_with_one_message(folder, values):
    edit(folder / "config.json", **values)
    with pytest.raises(ModelError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize(
    "values",
    [{"eos_token_id": "end"}, {"temperature": -1}, {"max_new_tokens": -5}, {"do_sample": {}}],
    ids=lambda values: next(iter(values)),
)
def test_what_an_odd_generation_config_lets_load_can_be_published(folder, tmp_path, values):
    edit(folder / "generation_config.json", **values)
    with suppress(ModelError):
        save_policy(load(folder), tmp_path, tokenizer=folder)


@pytest.mark.parametrize("ends", ["end", [1, "x"], {"a": 1}, 1.5, True])
def test_end_tokens_that_are_no_numbers_are_refused(folder, ends):
    edit(folder / "generation_config.json", eos_token_id=ends)
    with pytest.raises(ModelError, match="eos_token_id"):
        end_token_ids(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"chat_template": 5},
        {"chat_template": [{"name": "x"}]},
        {"bos_token": {"text": "x"}},
        {"additional_special_tokens": 3},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": 1}},
    ],
    ids=str,
)
def test_a_tokenizer_of_another_shape_is_refused_with_one_message(folder, values):
    edit(folder / "tokenizer_config.json", **values)
    with pytest.raises(ModelError, match="a form that is not known"):
        tokenizer_digest(folder)


HEADERS = [
    {"dtype": "F32", "shape": [1], "data_offsets": [0, -4]},
    {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": "abc", "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0]},
    {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
    [],
]


@pytest.mark.parametrize("entry", HEADERS, ids=str)
def test_a_header_with_an_odd_tensor_is_refused(folder, entry):
    write_header(folder, json.dumps({"w": entry}))
    with pytest.raises(ModelError, match="header cannot be read"):
        model_digest(folder)


@pytest.mark.parametrize("header", [DEEP, LONG, '{"\\ud800": {}}'], ids=["deep", "long", "half"])
def test_a_header_that_python_cannot_hold_is_refused(folder, header):
    write_header(folder, header)
    with pytest.raises(ModelError, match="header cannot be read"):
        model_digest(folder)


def write_header(folder: Path, header: str) -> None:
    content = header.encode()
    start = len(content).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(start + content + b"\0" * 4)


def test_the_words_of_two_sets_lead_to_one(sharded, other_weights):
    """The remedy that is named works."""
    shutil.copyfile(other_weights, sharded / "model.safetensors")
    assert_refused(sharded, "Remove the one that is not the model")
    (sharded / "model.safetensors.index.json").unlink()
    found = load(sharded).state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in load_file(other_weights).items()
    )


TOKENS = {"content": "w4 w5", "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "image_token"])
def test_tokens_that_other_files_add_are_digested(folder, name):
    before, ids = tokenizer_digest(folder), load_tokenizer(folder)("w4 w5").input_ids
    if name == "tokenizer_config.json":
        edit(folder / name, added_tokens_decoder={"64": TOKENS | {"special": True}})
    elif name == "image_token":
        edit(folder / "tokenizer_config.json", image_token="w4 w5")
    else:
        (folder / name).write_text(json.dumps({"w4 w5": 64}))
    assert load_tokenizer(folder)("w4 w5").input_ids != ids, "the tokenizer is another one"
    assert tokenizer_digest(folder) != before


def test_a_tokenizer_in_a_file_of_another_version_is_refused(folder):
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])
    with pytest.raises(ModelError, match=r"fast_tokenizer_files: tokenizer\.4\.0\.json"):
        tokenizer_digest(folder)


def test_vocabularies_in_other_forms_decide_nothing(folder):
    ids = load_tokenizer(folder)("w4 w5 w9").input_ids
    (folder / "vocab.txt").write_text("w9\nw5\nw4\n")
    (folder / "tokenizer.model").write_bytes(b"no model")
    assert load_tokenizer(folder)("w4 w5 w9").input_ids == ids
