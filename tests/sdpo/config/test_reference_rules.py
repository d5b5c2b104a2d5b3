"""What the recipe may say of reference and target."""

import shutil

import pytest

from sdpo.config import RunConfig, settings_without_effect
from sdpo.config.load import make_config
from sdpo.config.reference_choice import effective_reference
from sdpo.errors import ConfigError
from sdpo.identity.model_digest import model_digest
from sdpo.identity.payloads import step_identity
from sdpo.identity.tokenizer_digest import tokenizer_digest
from sdpo.inputs.demo.model import write_model
from sdpo.inputs.resolve import resolve


def config(**training):
    return make_config({"training": training})


def test_reference_and_target_may_differ_by_step():
    made = make_config(
        {
            "training": {"reference": "base"},
            "steps": [{}, {"reference": "guided", "target": "base"}],
        }
    )
    choices = [(made.training_of(k).reference, made.training_of(k).target) for k in (1, 2, 3)]
    assert choices == [("base", "previous"), ("guided", "base"), ("base", "previous")]


@pytest.mark.parametrize("field", ["reference_model", "reference_revision"])
def test_a_model_that_is_no_reference_is_said_to_have_no_effect(field):
    (line,) = settings_without_effect(config(**{field: "org/model"}))
    assert line == f"training.{field} has no effect: training.reference is previous"


def test_a_model_that_a_step_takes_as_reference_has_an_effect():
    made = make_config(
        {"training": {"reference_model": "org/model"}, "steps": [{}, {"reference": "model"}]}
    )
    assert settings_without_effect(made) == []


def test_words_bear_no_identity_and_digests_do():
    inputs = {"reference": "a", "target": "b", "partition": "c", "tokenizer": "d"}

    def identity(made: RunConfig, **changed: str):
        return step_identity(
            made.training_of(1), launch=made.launch, model=made.model, inputs=inputs | changed
        )

    plain = identity(config())
    words = config(
        reference="model", reference_model="org/m", reference_revision="x", target="base"
    )
    assert identity(words) == plain
    assert not [name for name in identity(words)["training"] if name.startswith(("ref", "target"))]
    assert identity(config(), reference="other") != plain
    assert identity(config(), target="other") != plain


def test_an_objective_without_reference_takes_none_and_says_what_is_not_read():
    assert config(objective="simpo", reference="none").training.reference == "none"
    assert effective_reference(config(objective="simpo", reference="guided").training) == "none"
    lines = settings_without_effect(config(objective="simpo", reference="base"))
    assert "training.reference has no effect on objective simpo, which reads none" in lines


@pytest.fixture
def foreign(tmp_path):
    """Two models of different vocabularies, and pairs."""
    folders = [tmp_path / name for name in ("own", "foreign")]
    for folder, letters in zip(folders, ("abcd", "wxyz"), strict=True):
        folder.mkdir()
        write_model(folder, [f"{letter * 3} says {letter}" for letter in letters] * 20)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return folders, pairs


def resolved(folders, pairs, **training):
    own, other = folders
    settings = {"reference": "model", "reference_model": str(other)} | training
    return resolve(
        make_config(
            {
                "name": "run",
                "model": {"name_or_path": str(own)},
                "data": {"sources": [{"path": str(pairs)}]},
                "training": settings,
                "store": {"runs_dir": str(pairs.parent / "runs")},
            }
        )
    )


def test_another_vocabulary_is_told_from_another_template(foreign):
    folders, pairs = foreign
    (found,) = resolved(folders, pairs).references.values()
    assert found.tokenizer == tokenizer_digest(folders[1])
    shutil.copytree(folders[0], folders[0].with_name("sibling"))
    sibling = folders[0].with_name("sibling")
    (sibling / "chat_template.jinja").write_text(
        (sibling / "chat_template.jinja").read_text().replace("bos_token -", "bos_token + 'x' -")
    )
    assert tokenizer_digest(sibling) != tokenizer_digest(folders[0])
    (found,) = resolved((folders[0], sibling), pairs).references.values()
    assert found.tokenizer == "", "its ids mean the same"


@pytest.mark.parametrize("objective", ["ipo", "dpo_norm"])
def test_a_foreign_vocabulary_is_refused_where_lengths_count(foreign, objective):
    with pytest.raises(ConfigError, match=r"has another vocabulary .* divides by their number"):
        resolved(*foreign, objective=objective)
    assert resolved(*foreign, objective="ipo_sum").references


def test_what_the_run_knows_of_a_named_model_is_its_digest(foreign):
    folders, pairs = foreign
    found = resolved(folders, pairs)
    assert found.inputs["reference.training"] == model_digest(folders[1])
    assert found.inputs["reference.training.tokenizer"] == tokenizer_digest(folders[1])
    assert found.config.training.reference_model == str(folders[1])
    assert "reference.training" not in resolved(folders, pairs, reference="previous").inputs
