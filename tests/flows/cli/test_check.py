"""What `sdpo check` and `sdpo partition` say and refuse before anything is trained."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench, Values
from command_line import Sdpo
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PAIRS = [
    {"prompt": f"Question {k}?", "chosen": f"good answer {k}", "rejected": f"bad answer {k}"}
    for k in range(24)
]
LONG = "tell me a long story about the weather " * 40


def write(path: Path, rows: list[Values]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def recipe(bench: Bench, tmp_path: Path):
    """``recipe(rows, **groups)``: a recipe over one source of these rows."""

    def recipe(rows: list[Values], *, source: Values | None = None, **groups: Values) -> Path:
        path = write(tmp_path / "mine.jsonl", rows)
        data = {"max_length": 64, "sources": [{"name": "mine", "path": path, **(source or {})}]}
        natural = {"strategy": "natural"}
        return bench.write({"data": data, "partition": natural, "steps": [], **groups})

    return recipe


def supervised(path: str) -> Values:
    return {"enabled": True, "examples": "source", "path": path, "warmup_ratio": 0}


def test_supervised_data_is_shown_with_its_counts_and_an_example(
    recipe, sdpo: Sdpo, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Text {k}", "completion": f"Word {k}."} for k in range(6)]
    rows += [{"prompt": f"{LONG}{k}", "completion": "Word."} for k in range(3)]
    path = write(tmp_path / "examples.jsonl", rows)
    called = sdpo("check", recipe(PAIRS, supervised=supervised(path)))
    assert called.code == 0, called.told
    assert "Supervised data, lengths in tokens" in called.out
    assert "3 prompt_fills_length" in called.out
    assert "supervised: " in called.out
    assert "│Word 0.<|end|>" in called.out


@pytest.mark.parametrize("command", ["check", "run"])
def test_supervised_data_of_which_nothing_is_left_is_refused_with_the_reason(
    command: str, recipe, sdpo: Sdpo, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{LONG}{k}", "completion": "Word."} for k in range(24)]
    path = write(tmp_path / "examples.jsonl", rows)
    called = sdpo(command, recipe(PAIRS, supervised=supervised(path)))
    assert called.code == 2
    message = " ".join(called.err.split())
    assert "no example is left to train on (24 prompt_fills_length)" in message
    assert "Line 1: the prompt alone fills data.max_length" in message


def test_examples_whose_prompts_are_all_reserved_are_told_so(
    recipe, sdpo: Sdpo, tmp_path: Path
) -> None:
    asked = [{"prompt": row["prompt"], "completion": "Word."} for row in PAIRS]
    options = ("--set", "data.reserve.fraction=0.9", "--set", "data.reserve.max_fraction=0.9")
    for row in asked:  # all but two or three are reserved
        path = write(tmp_path / "examples.jsonl", [row])
        called = sdpo("check", recipe(PAIRS, supervised=supervised(path)), *options)
        if called.code:
            break
    message = " ".join(called.err.split())
    assert "no example is left to train on (1 reserved_prompt)" in message
    assert "lower data.reserve.fraction" in message


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no \x1b[31msystem') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def told_by(called) -> str:
    return " ".join(called.out.replace("│", " ").split())


def test_rows_that_the_template_refuses_are_listed_with_its_words(
    recipe, sdpo: Sdpo, tmp_path: Path
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT, encoding="utf-8")
    model = {"chat_template": str(template)}
    called = sdpo("check", recipe([*PAIRS, {**PAIRS[0], "system": "Be kind."}], model=model))
    assert called.code == 0, called.told
    assert "mine template_refuses 1 line 25 the chat template" in told_by(called)
    assert "system, user: no ␛[31msystem" in told_by(called)
    refused = [{**pair, "system": "Be kind."} for pair in PAIRS]
    for command in ("check", "run"):
        called = sdpo(command, recipe(refused, model=model), "--set", "data.limit=0")
        assert called.code == 2
        message = " ".join(called.err.split())
        assert "no pairs left after tokenisation (24 template_refuses). Line 1: the chat" in message
        assert "no ␛[31msystem" in message


def test_calls_of_tools_are_shown_as_the_template_prints_them(
    recipe, sdpo: Sdpo, tmp_path: Path
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT, encoding="utf-8")
    call = {"function": {"name": "rain_in", "arguments": '{"city": "Rome"}'}}
    called_with = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows = [{**pair, "chosen": [called_with]} for pair in PAIRS]
    chosen = [called_with, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}]
    rows.append({**PAIRS[0], "chosen": chosen})
    called = sdpo("check", recipe(rows, model={"chat_template": str(template)}))
    assert called.code == 0, called.told
    assert '{"name": "rain_in", "arguments": {"city": "Rome"}}<|end|>' in told_by(called)
    assert "mine tool_turn_in_completion 1 line 25" in told_by(called)


def test_adapters_on_a_tied_embedding_are_refused(recipe, sdpo: Sdpo) -> None:
    training = {"lora_r": 4, "lora_target_modules": ["embed_tokens"], "max_steps": 1}
    for command in ("check", "run"):
        called = sdpo(command, recipe(PAIRS, training=training))
        assert called.code == 2
        message = " ".join(called.err.split())
        assert "step 1: training.lora_target_modules: embed_tokens: adapters on the" in message


def test_adapters_that_a_later_step_cannot_have_are_refused_before_the_first_is_trained(
    recipe, sdpo: Sdpo, bench: Bench, tmp_path: Path
) -> None:
    asked = [{**row, "prompt": f"{k}?"} for k, row in enumerate(PAIRS)]
    other = write(tmp_path / "other.jsonl", asked)
    sources = [
        {"name": name, "path": path}
        for name, path in [("mine", str(tmp_path / "mine.jsonl")), ("other", other)]
    ]
    training = {"lora_r": 4, "lora_target_modules": ["embed_tokens"]}
    written = recipe(PAIRS, data={"max_length": 64, "sources": sources}, steps=[{}, training])
    called = sdpo("run", written)
    assert called.code == 2
    assert "step 2: training.lora_target_modules: embed_tokens" in " ".join(called.err.split())
    assert not (bench.runs / "tiny" / "step-1").exists()


def test_rows_that_are_not_used_are_shown_with_the_first_and_what_of_it(recipe, sdpo: Sdpo) -> None:
    scored = [{**row, "score_chosen": 1, "score_rejected": k % 3} for k, row in enumerate(PAIRS)]
    rows = [*scored, {"prompt": "<|user|>Why?<|end|><|assistant|>", "chosen": "a", "rejected": "b"}]
    called = sdpo("check", recipe(rows))
    assert called.code == 0, called.told
    told = " ".join(called.told.replace("│", " ").split())
    assert "Rows that are not used" in told
    assert "mine scores_contradict 8 line 3 the chosen side scores 1 and the rejected" in told
    assert "mine tie 8 line 2 both sides score 1" in told
    assert "mine already_templated 1 line 25 a message of the prompt has the marks" in told


def test_a_partition_counts_the_pairs_that_a_run_would_have(
    recipe, sdpo: Sdpo, bench: Bench
) -> None:
    rows = [{**row, "prompt": row["prompt"] + LONG * (k % 2)} for k, row in enumerate(PAIRS)]
    called = sdpo("partition", recipe(rows))
    assert called.code == 0, called.told
    plan = json.loads((bench.runs / "tiny" / "plan.json").read_text(encoding="utf-8"))
    assert sum(step["pairs"] for step in plan["steps"]) + sum(plan["reserve"].values()) == 12


@pytest.mark.parametrize("command", ["check", "partition"])
def test_a_limit_draws_pairs_that_fit_and_says_what_it_passes_over(
    command: str, recipe, sdpo: Sdpo, bench: Bench
) -> None:
    rows = [{**row, "prompt": row["prompt"] + LONG * (k % 2)} for k, row in enumerate(PAIRS)]
    called = sdpo(command, recipe(rows), "--limit", "12")
    assert called.code == 0, called.told
    told = " ".join(called.told.replace("│", " ").split())
    assert re.search(r"data.limit 12 passes over \d+ pairs that cannot be used", told)
    if command == "partition":
        plan = json.loads((bench.runs / "tiny" / "plan.json").read_text(encoding="utf-8"))
        assert sum(s["pairs"] for s in plan["steps"]) + sum(plan["reserve"].values()) == 12
    else:
        assert "text: prompt/chosen/rejected 24 12" in told or re.search(r"rejected 24 12 ", told)
    called = sdpo(command, recipe(rows), "--limit", "20", "--set", "name=more")
    assert "data.limit 20 passes over 12 pairs" in " ".join(called.told.split())
    assert "cannot be used, and has 12 others" in " ".join(called.told.split())


def test_a_reference_that_cannot_read_the_pairs_is_refused(
    recipe, sdpo: Sdpo, bench: Bench, tmp_path: Path
) -> None:
    # Every character a token of its own: nothing fits the length that the run's tokens fit.
    model = tmp_path / "letters"
    shutil.copytree(Path(bench.recipe["model"]["name_or_path"]), model)
    path = model / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = []
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content), encoding="utf-8")
    training = {"reference": "model", "reference_model": str(model), "max_steps": 1}
    options = ("--set", "data.max_length=14")
    called = sdpo("check", recipe(PAIRS, training=training), *options)
    assert called.code == 2, called.told
    message = " ".join(called.err.split())
    assert "cannot be read by the tokenizer of" in message
    assert "prompt_fills_length: the prompt alone fills data.max_length" in message


def test_a_step_that_the_disk_has_no_room_for_is_refused(
    recipe, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))
    called = sdpo("check", recipe(PAIRS))
    assert called.code == 1
    message = " ".join(called.err.split())
    assert "step-1 is not started, since the disk is too small for it" in message
    assert "has 1e+03 B free" in message or "has 1 KB free" in message


def test_rounds_without_prompts_are_refused(bench: Bench, tmp_path: Path, sdpo: Sdpo) -> None:
    pairs, asked = write(tmp_path / "mine.jsonl", PAIRS), tmp_path / "prompts.jsonl"

    def check(**generate: object) -> tuple[int, str]:
        judged = {"judge": {"rule": "length"}, "max_new_tokens": 8, "n": 2, **generate}
        sources = [{"name": "mine", "path": pairs}, {"name": "round", "generate": judged}]
        data = {"max_length": 64, "sources": sources}
        called = sdpo("check", bench.write({"data": data}))
        return called.code, called.told

    code, told = check(prompts_of="mine", rounds=3, per_round=12)
    assert code == 2
    assert "3 rounds of 12 leave none for the last" in told
    write(asked, [{"asked": row["prompt"]} for row in PAIRS])
    code, told = check(prompts=str(asked))
    assert code == 2
    assert "it has no column `prompt`, but asked: set generate.prompt_column" in told
    code, told = check(prompts_of="mine", rounds=2, per_round=8, held_out=2)
    assert code == 0, told
    assert "ready: 3 steps" in told
    drawn, held_out = 2 * 8 * 2 * 8, 3 * 2 * 8
    assert f"up to {drawn + held_out} tokens of samples" in told, "three models answer two prompts"


def test_a_recipe_without_a_name_is_refused(recipe, sdpo: Sdpo) -> None:
    called = sdpo("check", recipe(PAIRS, name=""))
    assert called.code == 2
    assert "the run has no name" in called.err


def test_the_model_that_is_checked_is_loaded_and_tried(recipe, sdpo: Sdpo) -> None:
    called = sdpo("check", recipe(PAIRS))
    assert called.code == 0, called.told
    assert "M_0 loads, and scores the shortest and the longest pair" in called.out


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_reserve_of_so_many_pairs_is_set_aside_or_refused_with_the_most_that_can_be(
    command: str, recipe, sdpo: Sdpo
) -> None:
    called = sdpo(command, recipe(PAIRS), "--set", "data.reserve.pairs=24")
    assert called.code == 2, called.told
    assert "leaves nothing of source mine to train on: it has 24 usable pairs, of which 23" in (
        called.err
    )
    assert "set it to 23 or less" in called.err
    if command == "check":
        called = sdpo(command, recipe(PAIRS), "--set", "data.reserve.pairs=7")
        assert called.code == 0, called.told
        (line,) = [line for line in called.out.splitlines() if " mine " in line and "24" in line]
        assert " 7 " in line


def test_prompts_that_are_cut_are_counted_and_shown(recipe, sdpo: Sdpo) -> None:
    rows = [{**row, "prompt": LONG + row["prompt"]} for row in PAIRS[:6]] + PAIRS[6:]
    called = sdpo("check", recipe(rows), "--set", "data.max_prompt_length=32")
    assert called.code == 0, called.told
    assert "cut at the beginning: 25.0% of the prompts (data.max_prompt_length 32)" in called.out
    assert "6 pairs: the prompt is longer than data.max_prompt_length" in " ".join(
        called.told.split()
    )
    assert "6 prompt_fills_length" in sdpo("check", recipe(rows)).out


def test_weights_set_the_sizes_of_natural_steps_and_are_told_apart_from_faults(
    recipe, sdpo: Sdpo, tmp_path: Path
) -> None:
    asked = [{**row, "prompt": f"{k}?"} for k, row in enumerate(PAIRS)]
    sources = [
        {"name": "mine", "path": str(tmp_path / "mine.jsonl"), "weight": 1},
        {"name": "other", "path": write(tmp_path / "other.jsonl", asked), "weight": 2},
    ]
    data = {"max_length": 64, "sources": sources, "reserve": {"pairs": 2}}
    called = sdpo("partition", recipe(PAIRS, data=data))
    assert called.code == 0, called.told
    told = " ".join(called.out.split())
    assert "1 10 mine 10" in told
    assert "2 22 other 22" in told


@pytest.mark.slow
def test_a_run_of_lists_with_cut_prompts_passes_its_gate_and_says_that_they_are_cut(
    recipe, sdpo: Sdpo, bench: Bench
) -> None:
    rows = [
        {
            "prompt": f"{LONG}Question {k}?",
            "responses": [f"fair {k}", f"good {k}", f"poor {k}"],
            "scores": [5, 9, 2],
        }
        for k in range(12)
    ]
    source, training = {"pairing": "all"}, {"max_steps": 1}
    written = recipe(rows, source=source, training=training)
    called = sdpo("run", written, "--set", "data.max_prompt_length=32")
    assert called.code == 0, called.told
    assert "36 pairs: the prompt is longer than" in " ".join(called.told.split())
    report = (bench.runs / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "Prompts of 36 pairs are cut" in report
    assert "They keep their last 32 tokens" in report


@pytest.fixture
def model_of(bench: Bench, tmp_path: Path):
    """``model_of(kind)``: a small random model of an architecture, with the demo's tokenizer."""

    def model_of(kind: str, **settings: Any) -> Values:
        tokenizer = AutoTokenizer.from_pretrained(bench.recipe["model"]["name_or_path"])
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "vocab_size": len(tokenizer), "pad_token_id": 0}
        torch.manual_seed(3)
        config = AutoConfig.for_model(kind, **sizes, **heads, **settings)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return {"name_or_path": str(tmp_path / kind)}

    return model_of


EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4, "initializer_range": 0.2}


@pytest.mark.parametrize(
    ("kind", "settings", "attention", "message"),
    [
        ("phimoe", EXPERTS, "sdpa", "PhimoeForCausalLM is another model in training"),
        ("cpmant", {"dim_head": 8, "dim_ff": 48}, "sdpa", "Set model.attention: eager"),
        ("cpmant", {"dim_head": 8, "dim_ff": 48}, "eager", "beside others than alone"),
        ("modernbert-decoder", {}, "sdpa", "its forward is not one of a causal language model"),
    ],
)
def test_an_architecture_that_a_run_would_refuse_is_refused(
    recipe, model_of, sdpo: Sdpo, kind: str, settings: Values, attention: str, message: str
) -> None:
    model = model_of(kind, **settings) | {"attention": attention}
    called = sdpo("check", recipe(PAIRS, model=model))
    assert called.code == 2, called.told
    assert message in " ".join(called.err.split())


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_router_loss_for_a_model_without_routers_is_refused_before_anything_is_trained(
    recipe, sdpo: Sdpo, bench: Bench, command: str
) -> None:
    called = sdpo(command, recipe(PAIRS, steps=[{"router_aux_loss": 0.1}]))
    assert called.code == 2, called.told
    told = " ".join(called.err.split())
    assert "step 1: training.router_aux_loss has nothing to weigh: of LlamaForCausalLM" in told
    assert not (bench.runs / "tiny" / "step-1").exists()


def test_a_router_loss_of_a_mixture_of_experts_passes(recipe, model_of, sdpo: Sdpo) -> None:
    written = recipe(PAIRS, model=model_of("mixtral", **EXPERTS), training={"router_aux_loss": 0.1})
    called = sdpo("check", written)
    assert called.code == 0, called.told


def test_a_router_loss_for_a_mixture_whose_layers_are_all_dense_is_refused(
    recipe, model_of, sdpo: Sdpo
) -> None:
    model = model_of("qwen2_moe", num_key_value_heads=2, mlp_only_layers=[0, 1])
    called = sdpo("check", recipe(PAIRS, model=model, training={"router_aux_loss": 0.1}))
    assert called.code == 2, called.told
    assert "none of its layers has a router" in " ".join(called.err.split())


def test_frequencies_that_zero_3_cannot_compute_apart_are_refused(
    recipe, model_of, sdpo: Sdpo
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 3.0, 6.0, 12.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
    model = model_of(
        "phi3",
        num_key_value_heads=4,
        max_position_embeddings=64,
        original_max_position_embeddings=19,
        rope_parameters=rope | {"original_max_position_embeddings": 19},
    )
    launch = {"strategy": "deepspeed_zero3", "processes": 2, "device": "cpu"}
    called = sdpo("check", recipe(PAIRS, model=model, launch=launch))
    assert called.code == 2, called.told
    assert "which deepspeed_zero3 cannot compute apart" in " ".join(called.err.split())
    called = sdpo("check", recipe(PAIRS[:6], model=model_of("llama"), launch=launch))
    assert called.code == 0, called.told


def test_a_reference_with_a_tokenizer_of_its_own_is_tried_on_its_own_tokens(
    recipe, sdpo: Sdpo, foreign_model: Path
) -> None:
    training = {"reference": "model", "reference_model": str(foreign_model), "max_steps": 2}
    called = sdpo("check", recipe(PAIRS, training=training))
    assert called.code == 0, called.told
    assert "M_0 loads, and scores the shortest and the longest pair" in called.out
    assert f"{foreign_model.name} loads, and scores the shortest and the longest pair" in called.out


def test_the_last_line_is_a_verdict_with_time_and_disk(recipe, sdpo: Sdpo) -> None:
    called = sdpo("check", recipe(PAIRS))
    assert called.code == 0, called.told
    last = called.out.strip().splitlines()[-1]
    assert re.match(r"verdict: ready: 1 step; roughly .* on this CPU", last)
    assert re.search(r"[\d.]+ [KMG]B of disk, of which [\d.]+ [KMGT]B are free", last)


def test_what_bf16_would_do_here_is_said_where_a_run_is_checked_and_not_where_it_is_planned(
    recipe, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo.system.machine.multiplies_bf16", lambda: True)
    said = "training.precision=bf16 would train faster"
    assert said in " ".join(sdpo("check", recipe(PAIRS)).told.split())
    assert said not in " ".join(sdpo("partition", recipe(PAIRS)).told.split())


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [("training.max_steps=1", "a larger max_steps"), ("training.batch_size=64", "a smaller batch")],
)
def test_a_step_whose_only_update_has_rate_0_is_foreseen(
    recipe, sdpo: Sdpo, setting: str, remedy: str
) -> None:
    called = sdpo("check", recipe(PAIRS), "--set", setting, "--set", "training.warmup_ratio=0.1")
    assert called.code == 0
    told = called.out.strip().splitlines()[-1]
    assert told.startswith("verdict: ready, but step 1 would change nothing")
    assert remedy in told
    again = sdpo("check", recipe(PAIRS), "--set", setting, "--set", "training.warmup_ratio=0")
    assert again.out.strip().splitlines()[-1].startswith("verdict: ready: ")
    assert "a rate of 0" not in again.told


def test_the_one_of_a_few_updates_that_has_rate_0_is_counted(recipe, sdpo: Sdpo) -> None:
    def told_of(*settings: str) -> str:
        called = sdpo("check", recipe(PAIRS), *(x for each in settings for x in ("--set", each)))
        assert called.code == 0, called.told
        return " ".join(called.told.split())

    assert (
        "warning: 1 of 2 updates of step 1 has a rate of 0, at which warmup begins: with "
        "training.warmup_ratio=0 and training.warmup_steps=0 every update counts"
    ) in told_of("training.max_steps=2", "training.warmup_ratio=0.1")
    assert "a rate of 0" not in told_of("training.max_steps=2", "training.warmup_ratio=0")
    many = told_of("training.batch_size=1", "training.epochs=2", "training.warmup_ratio=0.1")
    assert "a rate of 0" not in many
