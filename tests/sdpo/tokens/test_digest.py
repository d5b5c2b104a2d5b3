import ast
import json
import shutil
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto import tokenization_auto

from sdpo.errors import ModelError
from sdpo.identity import tokenizer_digest as tokenizer_digest_of
from sdpo.identity.tokenizer_digest import (
    MODELS_WITH_A_CLASS,
    has_chat_template,
    tokenizer_digest,
)
from sdpo.tokens.load import load_tokenizer


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


CLASSES = (
    *("TokenizersBackend", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer"),
    *("GPTNeoXTokenizer", "CohereTokenizer", "CodeGenTokenizer", "RobertaTokenizer"),
)
TEXTS = [
    *(" the dog, and the fox.", "the dog\n\n  jumps <s>over</s> it ", "THE \u00c9 dog's 12 ids."),
    *("<|im_start|>user\nthe dog<|im_end|>", "\u4e2d\u6587 dog", "dog ."),
]
OF_PIECES = ("LlamaTokenizer", "GemmaTokenizer")
VALUES = (True, False, 0, 3, "", "first", "left", "utf-8", {}, {"add_dummy_prefix": True}, ["x"])


@pytest.fixture(scope="session")
def made(tmp_path_factory, make_tokenizer) -> dict[str, Path]:
    """By class, the folder of a tokenizer that it can read."""
    path = tmp_path_factory.mktemp("made")
    make_tokenizer("chatml", bos=True).save_pretrained(path / "bytes")
    # As SentencePiece's: words begin with a mark for the space before them.
    pieces = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(TEXTS * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path / "pieces")
    kinds = {name: "pieces" if name in OF_PIECES else "bytes" for name in CLASSES}
    return {name: path / kind for name, kind in kinds.items()}


def configured(made: dict[str, Path], folder: Path, name: str, **settings: object) -> Path:
    """A folder of a tokenizer of the class ``name`` with these settings."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made[name], folder)
    own = {**settings, "tokenizer_class": name}
    edit(folder / "tokenizer_config.json", lambda c: c.update(own))
    return folder


def ids_of(folder: Path) -> list[list[int]] | None:
    """As a run encodes texts; None where transformers does not load the folder, or not use it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return [tokenizer(text, verbose=False)["input_ids"] for text in TEXTS]
    except (ValueError, TypeError, AttributeError, KeyError, OSError, OverflowError):
        return None


def parameters() -> set[str]:
    """Of the tokenizers of transformers, as their sources name them."""
    named = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                named |= {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
    return named - {"self"}


def counts(name: str) -> bool:
    """Whether the digest can tell values of a setting apart, in a class that may read it."""
    config = {"tokenizer_class": "LlamaTokenizer", name: "x"}
    if name.endswith(("_token", "_tokens")) or name in tokenizer_digest_of._FLAGS:
        return True
    return bool(tokenizer_digest_of._settings(config))


def test_every_parameter_of_a_tokenizer_counts_or_is_known_to_be_harmless():
    uncounted = {name for name in parameters() if not counts(name)}
    assert uncounted <= tokenizer_digest_of._HARMLESS
    assert {"legacy", "do_lower_case", "add_prefix_space"} <= parameters() - uncounted


@pytest.mark.parametrize("name", CLASSES[:4])
def test_settings_that_do_not_count_change_no_ids(made, tmp_path, name):
    plain = configured(made, tmp_path / "plain", name)
    expected, digest = ids_of(plain), tokenizer_digest(plain)
    assert expected
    elsewhere = {"tokenizer_class", "chat_template", "added_tokens_decoder", "fast_tokenizer_files"}
    for setting in sorted(tokenizer_digest_of._HARMLESS - elsewhere):
        for value in (True, 3, "x"):
            folder = configured(made, tmp_path / "other", name, **{setting: value})
            assert tokenizer_digest(folder) == digest
            assert ids_of(folder) in (expected, None), (setting, value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlamaTokenizer", {"legacy": True}),
        ("LlamaTokenizer", {"add_prefix_space": False}),
        ("RobertaTokenizer", {"add_prefix_space": True}),
    ],
)
def test_a_setting_that_changes_ids_changes_the_digest(made, tmp_path, name, settings):
    plain = configured(made, tmp_path / "plain", name)
    other = configured(made, tmp_path / "other", name, **settings)
    assert ids_of(plain) != ids_of(other)
    assert tokenizer_digest(plain) != tokenizer_digest(other)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(CLASSES),
    given_settings=st.dictionaries(
        st.sampled_from(sorted(parameters() | {"split_special_tokens", "fix_mistral_regex"})),
        st.sampled_from(VALUES),
        min_size=1,
        max_size=3,
    ),
)
def test_two_folders_of_one_digest_give_the_same_ids(made, tmp_path, name, given_settings):
    plain = configured(made, tmp_path / "plain", name)
    other = configured(made, tmp_path / "other", name, **given_settings)
    try:
        same = tokenizer_digest(plain) == tokenizer_digest(other)
    except ModelError:
        return
    if same:
        assert ids_of(other) in (ids_of(plain), None)


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}])
@pytest.mark.parametrize("name", CLASSES)
def test_a_save_by_transformers_keeps_the_settings_or_changes_ids(made, tmp_path, name, settings):
    """A save loses `legacy` of Llama's class, and what is saved encodes otherwise."""
    folder = configured(made, tmp_path / "own", name, model_max_length=77, **settings)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    before, after = (
        tokenizer_digest_of._settings(json.loads((path / "tokenizer_config.json").read_text()))
        for path in (folder, tmp_path / "again")
    )
    assert before == after or ids_of(folder) != ids_of(tmp_path / "again")


def test_settings_as_they_are_without_leave_the_digest_as_it_was(made, tmp_path):
    before = tokenizer_digest(configured(made, tmp_path / "own", "LlamaTokenizer"))
    spelled = {"legacy": False, "sp_model_kwargs": {}, "use_default_system_prompt": False}
    folder = configured(made, tmp_path / "spelled", "LlamaTokenizer", **spelled)
    assert tokenizer_digest(folder) == before


NAMED = [
    *(None, "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast", "Qwen2Tokenizer"),
    *("GPT2Tokenizer", "GemmaTokenizer"),
]
TYPES = [
    *("llama", "qwen2", "qwen3", "gemma2", "mistral", "gpt2", "phi3", "gpt_neox", "stablelm"),
    *("hyperclovax_vision_v2", "no_such_model"),
]
HARD = "  It's 12345 foxes…\n\n\tМосква — naïve 東京  "


@pytest.mark.parametrize("named", NAMED)
def test_tokenizers_that_load_differently_under_models_of_two_types_differ(folder, named):
    """As transformers itself loads them: the class that counts is not always the one named."""

    def name_class(config):
        config.pop("tokenizer_class", None)
        config.update({"tokenizer_class": named} if named else {})

    edit(folder / "tokenizer_config.json", name_class)
    loaded: dict[str, set[str]] = {}
    for of_model in TYPES:
        (folder / "config.json").write_text(json.dumps({"model_type": of_model}))
        tokenizer = load_tokenizer(folder)
        try:
            ids = tokenizer(HARD)["input_ids"]
        except Exception as error:  # noqa: BLE001 - of a class that wants a token it has not
            ids = str(error)
        does = json.dumps([type(tokenizer).__name__, ids])
        loaded.setdefault(tokenizer_digest(folder), set()).add(does)
    assert all(len(does) == 1 for does in loaded.values()), loaded
    assert len(set().union(*loaded.values())) > 1 or named in ("TokenizersBackend",)


def test_the_type_of_the_model_is_no_part_of_a_tokenizer_where_it_decides_nothing(folder):
    """Digests of tokenizers that name their class are what they were."""
    before = tokenizer_digest(folder)
    for of_model in ("llama", "mistral", "phi3"):
        (folder / "config.json").write_text(json.dumps({"model_type": of_model}))
        assert tokenizer_digest(folder) == before


def test_the_types_of_models_with_a_class_of_their_own_are_those_of_transformers():
    listed = tokenization_auto.TOKENIZER_MAPPING_NAMES
    plain = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast", None)
    overruled = tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert {m for m in overruled if listed.get(m) not in plain} == MODELS_WITH_A_CLASS
