"""The recipes that come with the project: listed, printed, checked; and the paper's ablations."""

import re
from pathlib import Path

import jinja2
import pytest
from bench import Bench, DemoFiles
from command_line import Sdpo

from flows.recipes.presets import FOLDER, presets, printed
from sdpo.config import RunConfig, settings_without_effect
from sdpo.config.load import load_recipe
from sdpo.objectives import OBJECTIVES

NAMES = [preset.name for preset in presets()]

BEST = {
    "dpo": ((1e-6, 0.01), (1e-6, 0.003)),
    "ipo_sum": ((7e-7, 0.001), (1e-6, 0.001)),
    "simpo": ((7e-7, 1), (6e-7, 1)),
    "orpo": ((5e-7, 0.2), (5e-7, 0.5)),
    "asft": ((1e-6, 0.2), (7e-7, 0.1)),
    "apo_zero": ((3e-7, 0.005), (3e-7, 0.003)),
    "nca": ((3e-7, 5e-4), (3e-7, 3e-4)),
    "cal_dpo": ((5e-7, 3e-4), (3e-7, 3e-4)),
}
"""Learning rate and beta, 3B and 8B on UltraFeedback: arXiv 2502.01237, tables 6 and 7."""

ROUNDS = ("demo_rounds", "rlhf_workflow_8b", "sdpo_then_onpolicy", "self_improve")


def load(name: str):
    return load_recipe(FOLDER / f"{name}.yaml", presets=FOLDER)


def assert_common_settings(config: RunConfig) -> None:
    training = config.training
    assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.95)
    assert (training.batch_size, training.max_grad_norm, training.warmup_ratio) == (128, 2.0, 0.03)
    assert (training.optimizer, training.lr_schedule, training.epochs) == ("adamw", "linear", 1)
    assert config.data.max_length == 4096


def test_the_presets_are_those_that_are_promised():
    rows = [f"daa_{size}_{o}" for size in ("3b", "8b") for o in BEST]
    rows += [f"daa_{size}_{o}_one_stage" for size in ("3b", "8b") for o in ("orpo", "asft")]
    rows += [f"daa_{size}_sft" for size in ("3b", "8b")]
    own = {"demo", "paper_solar_10.7b", "smollm2_135m", "tulu3_8b", "zephyr_7b"}
    assert set(NAMES) == {*rows, *own, *ROUNDS}


@pytest.mark.parametrize("size", [0, 1], ids=["3b", "8b"])
@pytest.mark.parametrize("objective", BEST)
def test_a_two_stage_row_has_the_best_settings_of_the_paper(objective, size):
    config = load(f"daa_{('3b', '8b')[size]}_{objective}")
    training, supervised = config.training, config.supervised
    assert training.objective == objective
    assert (training.learning_rate, training.beta) == BEST[objective][size]
    assert_common_settings(config)
    assert (training.simpo_gamma_beta_ratio, training.cal_dpo_c) == (0.5, 1.0)
    assert supervised.from_source
    assert (supervised.learning_rate, supervised.batch_size, supervised.epochs) == (6e-6, 128, 1)
    assert config.model.name_or_path == ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B")[size]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("one_stage")])
def test_a_one_stage_row_starts_from_the_base_model(name):
    config = load(name)
    assert_common_settings(config)
    assert not config.supervised.enabled
    assert OBJECTIVES[config.training.objective].has_nll
    assert (config.training.preference_weight, config.training.learning_rate) == (1.0, 8e-6)


def test_zephyr_as_its_paper_has_it():
    training = load("zephyr_7b").training
    assert (training.objective, training.beta, training.learning_rate) == ("dpo", 0.1, 5e-7)
    assert (training.optimizer, training.lr_schedule) == ("rmsprop", "linear")
    assert (training.batch_size, training.warmup_ratio) == (32, 0.1)


def test_tulu_3_as_its_paper_has_it():
    config = load("tulu3_8b")
    training = config.training
    assert (training.objective, training.beta, training.learning_rate) == ("dpo_norm", 5.0, 5e-7)
    assert (training.batch_size, training.warmup_ratio, training.epochs) == (128, 0.1, 1)
    assert config.data.max_length == 2048


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_no_setting_without_effect_and_says_what_it_is(name):
    preset = next(preset for preset in presets() if preset.name == name)
    assert settings_without_effect(load(name)) == []
    assert 10 < len(preset.summary) < 90
    assert re.fullmatch(r"\d{4}\.\d{5}", preset.paper)


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_preset_is_the_same_recipe_anywhere(name, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(printed(name), encoding="utf-8")
    assert path.read_text().startswith("# ")
    mine, theirs = load_recipe(path), load(name)
    assert mine.model_copy(update={"name": name}) == theirs.model_copy(update={"name": name})
    template = mine.model.chat_template
    assert not template or Path(template).is_file()


@pytest.mark.parametrize("template", sorted(p.name for p in FOLDER.glob("*.jinja")))
def test_a_template_ends_every_answer_and_leaves_its_text_alone(template):
    text = (FOLDER / template).read_text(encoding="utf-8")
    messages = [{"role": "user", "content": " Q?\n"}, {"role": "assistant", "content": " yes\n"}]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    render = environment.from_string(text).render
    prompt = render(messages=messages[:1], eos_token="</s>", add_generation_prompt=True)
    whole = render(messages=messages, eos_token="</s>", add_generation_prompt=False)
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].rstrip() in (" yes\n</s>", " yes\n<|eot_id|>")
    assert " Q?\n" in prompt


def test_the_list_has_every_preset_with_objective_and_paper(sdpo: Sdpo):
    called = sdpo("recipes")
    assert called.code == 0
    for name in NAMES:
        assert re.search(rf"^ {re.escape(name)} ", called.out, re.MULTILINE), name
    assert re.search(
        r"daa_8b_simpo +SimPO after SFT.* SimPO, β 1, γ/β 0.5 +2502\.01237", called.out
    )
    assert "_daa" not in called.out.replace("daa_", "")


def test_a_preset_is_printed_as_it_is_or_with_what_it_extends(sdpo: Sdpo):
    assert sdpo("recipes", "demo").out == (FOLDER / "demo.yaml").read_text(encoding="utf-8")
    called = sdpo("recipes", "daa_3b_nca")
    assert "extends" not in called.out
    assert "UltraFeedback (arXiv 2502.01237" in called.out, "the comments of what it extends"
    assert "\n  beta: 0.0005\n" in called.out


def test_a_name_that_is_no_preset_gets_the_nearest(sdpo: Sdpo):
    for command in (("recipes", "zephyr"), ("run", "zephyr"), ("check", "zephyr")):
        called = sdpo(*command)
        assert called.code == 2
        assert "no preset named `zephyr`: did you mean `zephyr_7b`?" in called.told
    assert sdpo("recipes", "_daa").code == 2, "what presets share is none"


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


CHECKED = [
    # The 3B rows differ from these in numbers alone.
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("daa_3b") else [])
    for name in NAMES
    if name not in ("demo", *ROUNDS)
]


@pytest.mark.parametrize("name", CHECKED)
def test_check_accepts_it_over_local_files(
    name: str, sdpo: Sdpo, demo_files: DemoFiles, shared_cache: Path
):
    """The hub's models and data are not at hand: everything else is as the preset has it."""
    called = sdpo(
        *("check", name, "--limit", 40),
        *("--set", f"model.name_or_path={demo_files.model}", "--set", "model.chat_template="),
        *("--set", f"data.sources=[{{name: pairs, path: {demo_files.questions}}}]"),
        *("--set", f"store.cache_dir={shared_cache}"),
        *(
            ("--set", f"supervised.path={demo_files.dialogues}", "--set", "supervised.split=train")
            if load(name).supervised.enabled
            else ()
        ),
    )
    assert called.code == 0, called.told
    objective = presets()[NAMES.index(name)].objectives[0]
    assert objective in called.told
    assert "no effect" not in called.told


ABLATIONS = {
    # of sDPO's paper: the override; of each step its pairs, reference and target
    "natural steps": ("partition.strategy=natural", [(36, "previous", "previous")] * 2),
    "everything at once": ("partition.strategy=single", [(72, "previous", "previous")]),
    "stratified steps": (
        "partition.strategy=stratified",
        [(12, "previous", "previous"), (60, "previous", "previous")],
    ),
    "target from S": ("training.target=base", [(36, "previous", "base")] * 2),
    "reference fixed at S": ("training.reference=base", [(36, "base", "previous")] * 2),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_of_the_paper_is_one_override(ablation: str, bench: Bench, sdpo: Sdpo):
    override, steps = ABLATIONS[ablation]
    called = sdpo("check", bench.write(), "--set", override)
    assert called.code == 0, called.told
    row = r"^ +(\d) +(\d+) +\d+ +\d+ +DPO, β 0\.1 +(\w+) +(\w+) "
    found = re.findall(row, called.out, re.MULTILINE)
    expected = [(str(n), str(pairs), *models) for n, (pairs, *models) in enumerate(steps, 1)]
    assert found == expected


@pytest.mark.parametrize("name", ["paper_solar_10.7b", "daa_8b_dpo"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_projects_recipes_take_every_ablation(name: str, ablation: str):
    override, _ = ABLATIONS[ablation]
    config = load_recipe(FOLDER / f"{name}.yaml", presets=FOLDER, overrides=[override])
    assert settings_without_effect(config) == []
