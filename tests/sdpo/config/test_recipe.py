from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.config import RunConfig
from sdpo.config.load import check_run_name, checked, load_recipe, make_config
from sdpo.errors import ConfigError
from sdpo.promotion.judge import GateSettings


@pytest.fixture
def load(tmp_path):
    def load(text: str, *overrides: str, name: str = "trial.yaml") -> RunConfig:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides=overrides)

    return load


SOURCES = """
data:
  sources:
    - {name: easy, path: easy.jsonl}
    - {name: hard, path: hard.jsonl}
"""


def test_a_recipe_is_named_after_its_file(load):
    assert load("{}").name == "trial"
    assert load("name: other").name == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rte: 1}", "training.learning_rte: unknown key; .*`learning_rate`"),
        ("training: {lerning_rate: 1}", "training.lerning_rate: unknown key; .*`learning_rate`"),
        ("trainig: {}", "trainig: unknown key; did you mean `training`"),
        ("beta: 0.1", "beta: unknown key; did you mean `training.beta`"),
        ("learning_rate: 0.1", "learning_rate: unknown key; .*`training.learning_rate`"),
        ("data: {sources: [{pth: x}]}", "data.sources.0.pth: unknown key; .*`path`"),
        ("steps: [{}, {bta: 1}]", "steps.1.bta: unknown key; .*`beta`"),
        ("data: {reserve: {fractions: 1}}", "data.reserve.fractions: unknown key; .*`fraction`"),
        ("store: {zzz: 1}", "store.zzz: unknown key; known here: runs_dir, cache_dir"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_every_fault_has_a_line_of_its_own(load):
    with pytest.raises(ConfigError) as caught:
        load("training: {beta: -1, epochs: 0, nonsense: 1}")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "training.beta",
        "training.epochs",
        "training.nonsense",
    ]
    assert "got -1" in lines[0]


def test_a_key_that_stands_twice_is_refused_with_its_line(load):
    with pytest.raises(ConfigError, match=r"trial\.yaml is not YAML: line 3, column 3: .*`beta`"):
        load("training:\n  beta: 0.1\n  beta: 0.2\n")


@pytest.mark.parametrize("text", ["5e-7", "5E-7", "5e-07", "5.0e-7", "0.0000005", "+5e-7"])
def test_a_number_with_an_exponent_is_a_number(load, text):
    assert load(f"training: {{learning_rate: {text}}}").training.learning_rate == 5e-7
    assert load("{}", f"training.learning_rate={text}").training.learning_rate == 5e-7


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_any_number_that_python_prints_is_read_back(value):
    config = make_config({}, overrides=[f"training.learning_rate={value!r}"])
    assert config.training.learning_rate == value


def test_a_name_of_digits_and_an_e_stays_text_where_it_is_quoted(load):
    assert load('name: "1e5"').name == "1e5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [", "is not YAML"),
        ("- a\n- b", "a recipe is a mapping of groups"),
        ("just text", "a recipe is a mapping of groups"),
        ("", "a recipe is a mapping of groups"),
        ("name: {{ name }}", "is not YAML"),
        ("training:", "training: .*nothing is given"),
        ("training: 3", "training: .*not 3: write"),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_reason(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_recipe_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_missing_recipe_is_refused_with_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no recipe at {tmp_path}/absent.yaml"):
        load_recipe(Path("absent.yaml"))


def test_an_override_changes_one_value(load):
    config = load("training: {beta: 0.2, epochs: 3}", "training.beta=0.5")
    assert (config.training.beta, config.training.epochs) == (0.5, 3)


def test_the_last_override_of_a_key_holds(load):
    assert load("{}", "training.beta=0.5", "training.beta=0.7").training.beta == 0.7


def test_an_override_finds_a_source_by_its_index(load):
    config = load(SOURCES, "data.sources.1.max_pairs=7")
    assert [source.max_pairs for source in config.data.sources] == [0, 7]


def test_an_override_finds_a_source_by_its_name(load):
    config = load(SOURCES, "data.sources.hard.max_pairs=7", "data.sources.easy.columns.prompt=q")
    assert [source.max_pairs for source in config.data.sources] == [0, 7]
    assert config.data.sources[0].columns.prompt == "q"


def test_an_override_makes_the_list_entries_it_needs(load):
    config = load("{}", "steps.1.beta=0.5")
    assert (config.training_of(1).beta, config.training_of(2).beta) == (0.1, 0.5)


def test_an_override_may_give_a_whole_list(load):
    config = load("{}", "partition.fractions=[0.5, 0.5]")
    assert config.partition.fractions == [0.5, 0.5]


def test_an_empty_override_empties_a_text(load):
    recipe = "store: {cache_dir: elsewhere}\nmodel: {revision: v1}"
    config = load(recipe, "store.cache_dir=", "model.revision= ")
    assert (config.store.cache_dir, config.model.revision) == ("", "")


def test_a_value_may_hold_an_equals_sign(load):
    assert load("{}", "data.reserve.key=a=b").data.reserve.key == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.beta", "write it as group.key=value"),
        ("=3", "write it as group.key=value"),
        ("training.beta=[", "the value is not YAML"),
        ("training.beta=-1", "training.beta: .*greater than 0"),
        ("training.bta=1", "training.bta: unknown key; .*`beta`"),
        ("name.beta=1", "`name` is a value, not a group"),
        ("data.sources.easier.max_pairs=1", "none of the list's 2 entries is named `easier`"),
        ("data.sources.0.path.x=1", "`path` is a value, not a group"),
        ("partition.strata.0.x=1", "`0` is a value, not a group"),
    ],
)
def test_an_override_that_cannot_be_followed_is_refused_by_name(load, override, message):
    recipe = f"name: trial\npartition: {{strata: [source]}}{SOURCES}"
    with pytest.raises(ConfigError, match=message):
        load(recipe, override)


def test_overrides_leave_the_values_they_were_given_alone():
    values = {"steps": [{"beta": 0.2}]}
    make_config(values, overrides=["steps.0.beta=0.3", "training.beta=0.4"])
    assert values == {"steps": [{"beta": 0.2}]}


@pytest.mark.parametrize("name", ["a", "run-1", "Run_2.b", "2024.01.02", "x" * 100])
def test_a_plain_name_can_name_a_run(name):
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "name", ["a/b", "../a", "/tmp/a", "..", ".", ".hidden", "a b", "a\n", "", "-a", "ä", "x" * 101]
)
def test_a_path_or_worse_cannot_name_a_run(name):
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        check_run_name(name)


def test_an_override_may_name_its_step(load):
    config = load("{}", "step-2.beta=0.5", "steps.0.beta=0.3")
    assert [config.training_of(step).beta for step in (1, 2, 3)] == [0.3, 0.5, 0.1]
    with pytest.raises(ConfigError, match=r"step-0: unknown key"):
        load("{}", "step-0.beta=0.5")


def test_a_recipe_that_names_its_run_by_a_path_is_refused(load):
    with pytest.raises(ConfigError, match=r"`\.\./elsewhere` cannot be the name of a run"):
        load("name: ../elsewhere")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"reserve": {"fraction": 0.2}}}, r"reserve\.fraction .*max_fraction"),
        (
            {"data": {"max_prompt_length": 512, "max_length": 512}},
            r"max_prompt_length \(512\) leaves no room for an answer within data\.max_length",
        ),
        (
            {"data": {"reserve": {"pairs": 50, "fraction": 0.05, "min_pairs": 3}}},
            r"reserve\.pairs \(50\).*reserve\.fraction, data\.reserve\.min_pairs say it as a share",
        ),
        (
            {"partition": {"strategy": "random", "fractions": [0.5, 0.4]}},
            "fractions sum to 0.9, not 1",
        ),
        ({"partition": {"strategy": "stratified", "fractions": []}}, "one per step"),
        ({"partition": {"strategy": "random", "fractions": [1.5, -0.5]}}, "positive"),
        ({"supervised": {"enabled": True, "examples": "source"}}, r"supervised\.path is empty"),
        ({"launch": {"strategy": "single", "processes": 2}}, "use `ddp`"),
        (
            {
                "launch": {"strategy": "fsdp2", "processes": 2},
                "training": {"precision": "bf16"},
                "steps": [{}, {"lora_r": 8, "lora_dora": True}],
            },
            r"steps\.1\.lora_dora with launch\.strategy fsdp2 and precision bf16 is not supported",
        ),
        (
            {
                "launch": {"strategy": "deepspeed_zero3", "processes": 2},
                "model": {"base_precision": "nf4"},
                "training": {"lora_r": 8},
            },
            r"base_precision nf4 with launch\.strategy deepspeed_zero3 is not supported.*use `ddp`",
        ),
        (
            {
                "launch": {"strategy": "deepspeed_zero3", "processes": 2},
                "training": {"gradient_checkpointing": True, "recomputation": "selective"},
            },
            r"training\.recomputation selective with launch\.strategy deepspeed_zero3 .* fsdp2",
        ),
        (
            {
                "launch": {"strategy": "fsdp2", "processes": 2},
                "steps": [{}, {"optimizer": "adamw_8bit"}],
            },
            r"steps\.1\.optimizer adamw_8bit with launch\.strategy fsdp2 .* use `adamw`, or `ddp`",
        ),
        (
            {"launch": {"device": "cpu"}, "training": {"optimizer": "paged_adamw_8bit"}},
            r"training\.optimizer paged_adamw_8bit .* launch\.device is cpu: use adamw_8bit",
        ),
        (
            {"training": {"lora_r": 4, "lora_handoff": "continue"}, "steps": [{}, {"lora_r": 8}]},
            r"steps\.1\.lora_r \(8\) differs from training\.lora_r \(4\), and with lora_handoff",
        ),
        (
            {"training": {"lora_r": 4}, "steps": [{"lora_handoff": "continue"}]},
            r"steps\.0\.lora_handoff \(continue\) differs from training\.lora_handoff \(merge\)",
        ),
        (
            {"model": {"base_precision": "nf4"}},
            r"model\.base_precision nf4 is of a base under adapters, and training\.lora_r is 0",
        ),
        (
            {
                "model": {"base_precision": "int8"},
                "training": {"lora_r": 4, "compile": True},
            },
            r"int8 with training\.compile is not supported",
        ),
        (
            {"training": {"objective": "sft", "rpo_alpha": 1}},
            r"training\.rpo_alpha adds the negative .* to objective sft, which has it",
        ),
    ],
)
def test_an_impossible_combination_is_refused_with_what_to_do(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_over_a_base_of_another_precision_the_adapter_is_handed_on_unless_the_recipe_says():
    over = {"model": {"base_precision": "bf16"}, "training": {"lora_r": 4}}
    assert make_config(over).training.hands_on
    assert make_config(over, overrides=["training.lora_r=2"]).training.hands_on
    assert not make_config({"training": {"lora_r": 4}}).training.hands_on


def test_fractions_need_not_sum_to_one_where_nothing_uses_them():
    assert make_config({"partition": {"fractions": [0.5]}}).partition.fractions == [0.5]


def test_a_configuration_is_its_own_recipe():
    config = make_config({"steps": [{"beta": 0.2}], "data": {"sources": [{"path": "a.jsonl"}]}})
    assert make_config(config.model_dump()) == config


def test_settings_of_any_kind_are_checked_in_the_words_of_a_recipe():
    values = {"when_too_few": "guess", "accuracy_tolerance": "much", "bogus": 1}
    with pytest.raises(ConfigError) as error:
        checked(GateSettings, values, name="gate")
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "gate.accuracy_tolerance",
        "gate.when_too_few",
        "gate.bogus",
    ]
    assert lines[0].endswith("got 'much'")
    assert "unknown key; known here: " in lines[2]


def test_settings_that_were_checked_already_stay_what_they_are():
    settings = GateSettings(accuracy_tolerance=0.5)
    assert checked(GateSettings, settings, name="gate") == settings
