import os
import shutil
import time

import numpy as np
import pytest

from sdpo.config import LaunchConfig, ModelConfig, RunConfig, SupervisedConfig, TrainingConfig
from sdpo.config.load import make_config
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import (
    BF16_ON_CPU_VERSION,
    Payload,
    changed_settings,
    changes,
    data_identity,
    rows_digest,
    run_identity,
    step_identity,
    supervised_identity,
    tokens_identity,
)
from sdpo.identity.ranks import same_result
from sdpo.identity.scoring import scoring_identity
from sdpo.inputs.resolve import resolve

INPUTS = {"reference": "r" * 64, "target": "r" * 64, "partition": "p" * 64, "tokenizer": "t" * 64}
LAUNCH = LaunchConfig(device="cpu", strategy="single", threads=2)


def step(config: RunConfig, *, number: int = 1, **inputs: str) -> str:
    return digest_of(
        step_identity(
            config.training_of(number),
            launch=config.launch,
            model=config.model,
            inputs=INPUTS | inputs,
        )
    )


def configure(**values) -> RunConfig:
    """A resolved recipe: nothing in ``launch`` is left to the machine."""
    return make_config({"launch": LAUNCH.model_dump()} | values)


BASE = configure()


@pytest.mark.parametrize(
    "values",
    [
        {"name": "another"},
        {"store": {"runs_dir": "/elsewhere", "cache_dir": "/else/where"}},
        {"tracking": {"tools": ["tensorboard"], "project": "p"}},
        {"evaluation": {"every": 3}},
        {"probe": {"max_pairs": 9, "completions": 0}},
        {"model": {"name_or_path": "/models/m", "revision": "v1", "chat_template": "/t.jinja"}},
        {"data": {"sources": [{"name": "a", "path": "/data/a.jsonl"}], "max_length": 99}},
        {"partition": {"strategy": "random", "fractions": [0.5, 0.5], "seed": 1}},
        {"supervised": {"enabled": True, "learning_rate": 1.0}},
        {"steps": [{}, {"beta": 0.9}]},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_is_not_of_the_step_or_is_known_by_its_digest_does_not_count(values):
    assert step(configure(**values)) == step(BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0.2},
        {"learning_rate": 1e-6},
        {"optimizer": "rmsprop"},
        {"adam_beta2": 0.95},
        {"weight_decay": 0.01},
        {"lr_schedule": "cosine"},
        {"warmup_ratio": 0.0},
        {"max_grad_norm": 0.0},
        {"batch_size": 16},
        {"micro_batch_tokens": 512},
        {"epochs": 2},
        {"max_steps": 5},
        {"seed": 43},
        {"gradient_checkpointing": True},
        {"lora_r": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_training_setting_counts_for_all_steps_or_for_one(change):
    everywhere, second = configure(training=change), configure(steps=[{}, change])
    assert step(everywhere) != step(BASE)
    assert step(second, number=1) == step(BASE)
    assert step(second, number=2) == step(everywhere)


@pytest.mark.parametrize(
    "change",
    [{"checkpoint_every": 5}, {"checkpoint_minutes": 1.0}, {"checkpoints_kept": 3}],
    ids=lambda change: next(iter(change)),
)
def test_what_a_resume_goes_on_from_does_not_count(change):
    assert step(configure(training=change)) == step(BASE)
    assert step(configure(steps=[{}, change]), number=2) == step(BASE)
    assert changed_settings(configure(training=change)) == changed_settings(BASE)


def test_precision_counts():
    assert step(configure(training={"precision": "bf16"})) != step(BASE)


@pytest.mark.parametrize(
    "change",
    [{"threads": 1}, {"processes": 2, "strategy": "ddp"}, {"strategy": "ddp"}, {"device": "cuda"}],
    ids=lambda change: next(iter(change)),
)
def test_the_arithmetic_of_the_machine_counts(change):
    launch = LAUNCH.model_dump() | change
    assert step(configure(launch=launch)) != step(BASE)


def test_the_attention_kernel_counts():
    assert step(configure(model={"attention": "eager"})) != step(BASE)


@pytest.mark.parametrize("name", INPUTS)
def test_the_content_of_every_input_counts(name):
    assert step(BASE, **{name: "0" * 64}) != step(BASE)


def test_a_budget_that_is_spelled_out_is_the_same_budget():
    assert step(configure(training={"micro_batch_tokens": 1024})) == step(BASE)


def test_the_identity_is_made_of_plain_values_and_names_the_change():
    payload = step_identity(
        TrainingConfig(beta=0.2), launch=LAUNCH, model=ModelConfig(), inputs=INPUTS
    )
    assert payload["training"] == {"beta": 0.2, "micro_batch_tokens": 1024}
    assert payload["inputs"] == INPUTS
    assert payload["arithmetic"]["threads"] == 2


def test_a_setting_at_its_default_is_left_out():
    assert changed_settings(RunConfig()) == {}
    spelled_out = make_config(RunConfig().model_dump())
    assert changed_settings(spelled_out) == {}
    assert changed_settings(TrainingConfig(beta=0.1, epochs=2)) == {"epochs": 2}


def test_groups_and_lists_of_groups_are_followed():
    config = make_config(
        {"data": {"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl", "max_pairs": 3}]}}
    )
    assert changed_settings(config) == {"data": {"sources": [{}, {"max_pairs": 3}]}}


def run(config: RunConfig, **inputs: str) -> str:
    return digest_of(run_identity(config, {"model": "m", **inputs}))


@pytest.mark.parametrize(
    "values",
    [
        {"store": {"runs_dir": "/elsewhere"}},
        {"tracking": {"tools": ["wandb"]}},
        {"name": "another"},
        {"model": {"name_or_path": "/elsewhere/model"}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_run_is_the_same_run_in_another_place(values):
    assert run(configure(**values)) == run(BASE)


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"beta": 0.2}},
        {"steps": [{"beta": 0.2}]},
        {"data": {"max_length": 99}},
        {"data": {"limit": 9}},
        {"data": {"reserve": {"key": "other"}}},
        {"partition": {"order": "easy_first"}},
        {"supervised": {"enabled": True}},
        {"evaluation": {"every": 3}},
        {"probe": {"seed": 3}},
    ],
    ids=str,
)
def test_a_run_with_another_setting_is_another_run(values):
    assert run(configure(**values)) != run(BASE)


def test_a_run_with_another_input_or_another_source_name_is_another_run():
    def named(name: str) -> RunConfig:
        return configure(data={"sources": [{"name": name, "path": "a.jsonl"}]})

    assert run(BASE, model="another") != run(BASE)
    assert run(named("a")) != run(named("b"))


def supervised(config: RunConfig) -> str:
    return digest_of(
        supervised_identity(
            config.supervised,
            config.training,
            launch=config.launch,
            model=config.model,
            inputs={"base": "b" * 64, "examples": "e" * 64},
        )
    )


def test_the_preference_settings_do_not_count_for_the_supervised_stage():
    assert supervised(configure(training={"beta": 0.7})) == supervised(BASE)
    another = configure(training={"objective": "simpo", "simpo_gamma_beta_ratio": 1.0})
    assert supervised(another) == supervised(BASE)


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"learning_rate": 1e-6}},
        {"training": {"lora_r": 4}},
        {"supervised": SupervisedConfig(fraction=0.5).model_dump()},
        {"supervised": SupervisedConfig(examples="source", path="x").model_dump()},
    ],
    ids=["learning_rate", "lora_r", "fraction", "on"],
)
def test_what_changes_the_supervised_model_counts(values):
    assert supervised(configure(**values)) != supervised(BASE)


DATA = {"data.a": "d" * 64, "model": "m" * 64, "tokenizer": "t" * 64}


def data(config: RunConfig, *, default_format: str = "chat", **inputs: str) -> str:
    return digest_of(data_identity(config, DATA | inputs, default_format=default_format))


def sources(**settings) -> RunConfig:
    return configure(data={"sources": [{"name": "a", "path": "/x/a.jsonl"} | settings]})


def test_pairs_do_not_depend_on_model_length_reserve_or_folder():
    base = data(sources())
    assert data(sources(path="/y/b.jsonl")) == base
    assert data(sources(), model="another", tokenizer="another") == base
    config = sources().model_copy(
        update={"data": sources().data.model_copy(update={"max_length": 8})}
    )
    assert data(config) == base


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "b"},
        {"max_pairs": 3},
        {"format": "text"},
        {"split": "test"},
        {"columns": {"prompt": "question"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_pairs_depend_on_every_setting_of_a_source(settings):
    assert data(sources(**settings)) != data(sources())


def test_pairs_depend_on_the_contents_the_format_and_the_strata():
    base = data(sources())
    assert data(sources(), **{"data.a": "0" * 64}) != base
    assert data(sources(), default_format="text") != base
    strata = sources().model_copy(
        update={"partition": BASE.partition.model_copy(update={"strata": ["source", "topic"]})}
    )
    assert data(strata) != base


@pytest.mark.parametrize("changed", ["content", "tokenizer", "clock", "ends", "max_length"])
def test_tokens_depend_on_all_they_are_made_of(changed):
    def tokens(**values):
        length = values.pop("max_length", 64)
        config = configure(data={"max_length": length})
        arguments = {"content": "c", "tokenizer": "t", "clock": "", "ends": [2]} | values
        return digest_of(tokens_identity(config, **arguments))

    other = {"content": "d", "tokenizer": "u", "clock": "noon", "ends": [3], "max_length": 65}
    assert tokens(**{changed: other[changed]}) != tokens()


def test_rows_are_known_by_their_content_and_order():
    rows = np.random.default_rng(0).integers(0, 3, (9000, 16), dtype=np.uint8)  # many zeros
    digests = rows.view("S16").ravel()
    assert rows_digest(digests) == digest_of([row.tobytes().hex() for row in rows])
    assert rows_digest(digests) != rows_digest(digests[::-1].copy())
    assert rows_digest(digests[:0]) == digest_of([])


def test_the_same_files_elsewhere_on_another_host_later_are_the_same_run(
    save_model, tmp_path, monkeypatch
):
    def identity(folder):
        config = configure(
            model={"name_or_path": str(folder / "model")},
            data={"sources": [{"name": "a", "path": str(folder / "a.jsonl")}]},
        )
        resolved = resolve(config)
        return run_identity(resolved.config, dict(resolved.inputs))

    save_model("here/model")
    (tmp_path / "here" / "a.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    here = identity(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    os.utime(tmp_path / "there" / "deeper" / "a.jsonl", (0, 0))
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert identity(tmp_path / "there" / "deeper") == here


@pytest.mark.parametrize(
    ("objective", "change"),
    [
        ("cdpo", {"label_smoothing": 0.2}),
        ("exo", {"exo_epsilon": 0.01}),
        ("cal_dpo", {"cal_dpo_c": 0.5}),
        ("simpo", {"simpo_gamma_beta_ratio": 1.0}),
        ("orpo_one_stage", {"preference_weight": 0.1}),
        ("orpo", {"beta": 0.2}),
    ],
)
def test_a_setting_of_an_objective_counts_where_it_is_read_and_nowhere_else(objective, change):
    read = configure(training={"objective": objective})
    assert step(read) != step(BASE)
    assert step(configure(training={"objective": objective} | change)) != step(read)
    unread = configure(training={"objective": "sft"})
    assert step(configure(training={"objective": "sft"} | change)) == step(unread)


def test_lora_settings_count_with_adapters_alone():
    assert step(configure(training={"lora_alpha": 32})) == step(BASE)
    adapters = configure(training={"lora_r": 4})
    assert step(configure(training={"lora_r": 4, "lora_alpha": 32})) != step(adapters)


RANKS = [2, 3, 8]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero3"])
def test_how_many_share_a_step_is_stated_and_makes_no_other_result(strategy):
    def shared(processes: int) -> RunConfig:
        return configure(launch={"strategy": strategy, "processes": processes, "device": "cpu"})

    def payloads(config: RunConfig) -> list[Payload]:
        group = {"launch": config.launch, "model": config.model}
        step = step_identity(config.training, inputs=INPUTS, **group)
        probe = {"scoring": scoring_identity("d", training=config.training, **group)}
        return [step, probe, run_identity(config, dict(INPUTS))]

    all_of = [payloads(shared(number)) for number in RANKS]
    for two, three, eight in zip(*all_of, strict=True):
        assert two != three != eight, "the number is recorded"
        assert same_result(two, three)
        assert same_result(two, eight)
        assert changes(two, eight) == []


def test_a_step_in_bf16_on_a_cpu_alone_has_the_version_of_what_computes_it():
    def arithmetic(precision: str, device: str) -> Payload:
        config = configure(training={"precision": precision}, launch={"device": device})
        payload = step_identity(
            config.training, launch=config.launch, model=config.model, inputs=INPUTS
        )
        return payload["arithmetic"]

    assert arithmetic("bf16", "cpu")["bf16_on_cpu_version"] == BF16_ON_CPU_VERSION
    for precision, device in (("fp32", "cpu"), ("bf16", "cuda"), ("fp32", "cuda")):
        assert "bf16_on_cpu_version" not in arithmetic(precision, device)


def test_what_one_process_computes_is_another_result_than_what_several_share():
    def payload(**launch) -> Payload:
        config = configure(launch=LAUNCH.model_dump() | launch)
        return step_identity(
            config.training, launch=config.launch, model=config.model, inputs=INPUTS
        )

    one, two = payload(strategy="single"), payload(strategy="ddp", processes=2)
    assert not same_result(one, two)
    assert changes(one, two) == [
        "arithmetic.processes: 1 -> 2",
        "arithmetic.strategy: single -> ddp",
    ]
    assert not same_result(two, payload(strategy="fsdp2", processes=2))
    probe = {"scoring": {"device": "cpu", "processes": 1}}
    assert not same_result(probe, {"scoring": {"device": "cpu", "processes": 2}})
