"""The benches count what they say they count, and still run."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measured import OutOfMemoryKill, run_module
from benchmarks.rivals import AS_CONFIGURED, Way

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shapes() -> ModuleType:
    """``benchmarks/shapes.py``; benches are programs, and no package of the tests."""
    found = importlib.util.spec_from_file_location("shapes", ROOT / "benchmarks/shapes.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_useful_operations_are_those_that_torch_counts_without_the_masked_half(shapes):
    shape, prompt, completion = shapes.SHAPES["tiny"], 11, 7
    length = prompt + completion
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            tie_word_embeddings=shape.tied,
            attn_implementation="eager",
        )
    )
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=False)
    masked = 4 * shape.hidden * shape.layers * (length * (length - 1) // 2)
    head_on_prompt = 2 * prompt * shape.vocabulary * shape.hidden
    last_on_prompt = 2 * prompt * 3 * shape.feed_forward * shape.hidden
    counted = counter.get_total_flops() - masked - head_on_prompt - last_on_prompt
    assert shape.forward_flops(prompt, completion, 0) == counted


def test_a_shared_prompt_is_counted_once(shapes):
    flops = shapes.SHAPES["5M"].forward_flops
    assert flops(90, 40, 30) == flops(90, 40, 0) + flops(90, 30, 0) - flops(90, 0, 0)


@pytest.mark.parametrize("name", ["ultrafeedback", "ultrafeedback-long", "hh", "tldr"])
def test_lengths_have_the_means_that_are_asked_for_and_stay_below_the_limit(shapes, name):
    wanted = shapes.LENGTHS[name]
    lengths = wanted.sample(128, seed=1, max_length=1024)
    means = [wanted.prompt, wanted.chosen, wanted.rejected]
    np.testing.assert_allclose(lengths.mean(axis=0), means, rtol=0.02)
    assert (lengths[:, 0] + lengths[:, 1:].max(axis=1)).max() <= 1024
    assert lengths.std(axis=0).min() > 0.2 * min(means)


@pytest.mark.slow  # a minute
@pytest.mark.timeout(600)
def test_the_comparison_with_trl_runs_and_names_its_numbers(tmp_path):
    command = [sys.executable, "-m", "benchmarks.trl", "--json", str(tmp_path / "numbers.json")]
    command += ["--model", "tiny", "--lengths", "short", "--pairs", "16", "--repeat", "1"]
    command += ["--trl", "8,1", "--only", "compare,warm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    ratios = {"time_ratio", "memory_ratio", "time_ratio_best", "memory_ratio_best"}
    assert ratios | {"memory_ratio_net", "peak_share", "loss_difference"} <= numbers.keys()
    assert numbers["loss_difference"] < 1e-4
    sides = numbers["sides"]
    assert {"TRL 8/device", "TRL 1/device", AS_CONFIGURED.name} < sides.keys()
    assert numbers["trl_usual"] == AS_CONFIGURED.name
    best = min(side["total_s"] for name, side in sides.items() if name != "sdpo")
    assert numbers["time_ratio_best"] == pytest.approx(best / sides["sdpo"]["total_s"])


@pytest.mark.slow  # two minutes
@pytest.mark.timeout(900)
def test_the_other_sections_of_the_comparison_run_and_both_sides_train_on_the_same(tmp_path):
    command = [sys.executable, "-m", "benchmarks.trl", "--json", str(tmp_path / "numbers.json")]
    command += ["--model", "tiny", "--lengths", "short", "--pairs", "16", "--repeat", "1"]
    command += ["--trl", "8", "--tokenise-pairs", "50", "--only", "curve,tokenise,chain"]
    command[-1] += ",orchestration"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["chain_optimizer_steps"] == 4, "two steps of 16 pairs, 8 at a time"
    assert numbers["chain_loss_difference"] < 1e-5, "TRL has the pairs of the run, in its order"
    assert numbers["curve_loss_difference"] < 1e-4
    assert {"chain_time_ratio", "chain_memory_ratio", "orchestration_s"} <= numbers.keys()
    assert len(numbers["chain_matmul_flops_per_s"]) == 4, "before the first of three, after each"


def test_the_shape_of_a_folder_has_the_weights_of_its_model(shapes, demo_files):
    sizes = json.loads((demo_files.model / "config.json").read_text(encoding="utf-8"))
    shape = shapes.shape_of(demo_files.model)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_a_model_of_which_operations_are_not_counted_is_refused(shapes, tmp_path):
    sizes = {"model_type": "qwen3", "hidden_size": 32, "num_attention_heads": 4, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    with pytest.raises(SystemExit, match="operations are counted for Llamas"):
        shapes.shape_of(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "60M"], "neither a shape"),
        (["--model", "{model}"], "needs --rows"),
        (["--rows", "pairs.jsonl"], "give --model a folder"),
        (["--model", "{model}", "--rows", "{rows}", "--lengths", "hh"], "the rows of the file"),
    ],
)
def test_a_real_model_and_its_rows_go_together(demo_files, arguments, told):
    from benchmarks import trl

    names = {"model": demo_files.model, "rows": demo_files.questions}
    with pytest.raises(SystemExit, match=told):
        trl.main([argument.format(**names) for argument in arguments])


@pytest.mark.slow  # a minute
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank", ["0", "4"])
def test_a_real_model_is_compared_on_its_own_tokens(demo_files, tmp_path, rank):
    command = [sys.executable, "-m", "benchmarks.trl", "--json", str(tmp_path / "numbers.json")]
    command += ["--model", str(demo_files.model), "--rows", str(demo_files.questions)]
    command += ["--pairs", "16", "--repeat", "1", "--trl", "2", "--only", "compare"]
    command += ["--max-length", "128", "--set", f"lora_r={rank}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    losses = [side["losses"] for side in numbers["sides"].values()]
    assert losses[0][0] == pytest.approx(np.log(2), abs=1e-4)
    # Adapters begin at random: beyond the first update each side has its own.
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    if rank == "0":
        assert numbers["loss_difference"] < 1e-4


def test_a_program_that_the_kernel_killed_is_told_from_one_that_failed(tmp_path):
    code = {"killed": "import os; os.kill(os.getpid(), 9)", "failed": "raise SystemExit(3)"}
    told = {}
    for name, line in code.items():
        (tmp_path / f"{name}.py").write_text(line)
        with pytest.raises(RuntimeError) as caught:
            run_module(name, log=tmp_path / "log", environment={"PYTHONPATH": str(tmp_path)})
        told[name] = type(caught.value)
    assert told == {"killed": OutOfMemoryKill, "failed": RuntimeError}


def test_trl_as_configured_is_what_trl_does_where_nothing_is_set():
    from trl import DPOConfig

    unset = {field.name: field.default for field in dataclasses.fields(DPOConfig)}
    as_unset = Way(
        per_device=unset["per_device_train_batch_size"],
        checkpointing=unset["gradient_checkpointing"],
        precompute=unset["precompute_ref_log_probs"],
    )
    assert as_unset == AS_CONFIGURED
