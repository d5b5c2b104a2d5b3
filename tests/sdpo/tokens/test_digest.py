import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sdpo.errors import ModelError
from sdpo.identity.tokenizer_digest import has_chat_template, tokenizer_digest


@pytest.fixture
def folder(tmp_path, make_tokenizer) -> Path:
    path = tmp_path / "made"
    make_tokenizer("chatml", bos=True).save_pretrained(path)
    return path


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_save_by_transformers_keeps_the_digest(folder, tmp_path):
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert tokenizer_digest(tmp_path / "again") == tokenizer_digest(folder)


@pytest.mark.parametrize("name", ["base-2m", "stories260k"])
def test_a_save_by_transformers_keeps_the_digest_of_real_tokenizers(shared, tmp_path, name):
    model = shared / "models" / name
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / name)
    assert (tmp_path / name / "tokenizer_config.json").read_bytes() != (
        model / "tokenizer_config.json"
    ).read_bytes()
    assert tokenizer_digest(tmp_path / name) == tokenizer_digest(model)


def test_real_tokenizers_differ(shared):
    models = shared / "models"
    assert tokenizer_digest(models / "base-2m") != tokenizer_digest(models / "stories260k")


def test_the_older_form_of_merges_and_of_the_template_is_the_same_tokenizer(folder):
    before = tokenizer_digest(folder)

    def older(content):
        content["version"] = "0.9"
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]

    edit(folder / "tokenizer.json", older)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    assert tokenizer_digest(folder) == before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda c: c["model"]["merges"].pop()),
        ("tokenizer.json", lambda c: c.update(post_processor=None)),
        ("tokenizer.json", lambda c: c["added_tokens"].pop()),
        ("tokenizer_config.json", lambda c: c.update(eos_token="<|im_end|>")),
        ("tokenizer_config.json", lambda c: c.update(add_bos_token=True)),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer")),
    ],
)
def test_what_changes_ids_changes_the_digest(folder, file, change):
    before = tokenizer_digest(folder)
    edit(folder / file, change)
    assert tokenizer_digest(folder) != before


def test_the_template_changes_the_digest(folder):
    before = tokenizer_digest(folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert tokenizer_digest(folder) != before


@pytest.mark.parametrize(
    "change",
    [
        {"name_or_path": "elsewhere", "transformers_version": "4.40"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"is_local": False, "model_max_length": 77},
    ],
)
def test_paths_versions_and_limits_do_not_change_the_digest(folder, tmp_path, change):
    before = tokenizer_digest(folder)
    edit(folder / "tokenizer_config.json", lambda c: c.update(change))
    moved = shutil.move(folder, tmp_path / "moved")
    assert tokenizer_digest(Path(moved)) == before


def test_special_tokens_may_stand_in_the_older_file_of_their_own(folder):
    before = tokenizer_digest(folder)
    eos = {"content": "</s>", "lstrip": False, "special": True}
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": eos}))
    edit(folder / "tokenizer_config.json", lambda c: c.pop("eos_token"))
    assert tokenizer_digest(folder) == before


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        tokenizer_digest(tmp_path)


def test_a_chat_template_is_found_where_transformers_finds_it(folder):
    assert has_chat_template(folder)
    (folder / "chat_template.jinja").unlink()
    assert not has_chat_template(folder)
    named = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]
    for template, found in [("x", True), (named, True), (named[1:], False), (None, False)]:
        edit(folder / "tokenizer_config.json", lambda c, t=template: c.update(chat_template=t))
        assert has_chat_template(folder) is found
