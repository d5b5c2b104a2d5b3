"""A run that hands adapters on is verified, replayed, exported, grown and used like any other."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from bench import Bench, Values, merged
from command_line import Sdpo
from histories import origin, replayed, write_new_pairs
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.identity.model_digest import model_digest

CONTINUE = {
    "training": {"lora_r": 2, "lora_handoff": "continue", "learning_rate": 5e-3, "max_steps": 2},
    "data": {"limit": 16},
    "probe": {"kl_prompts": 2, "kl_samples": 1, "kl_tokens": 4},
}
WITHOUT_KL = {"probe": {"kl_prompts": 0, "completions": 0}}
IDS = torch.arange(4, 40)[None]


@pytest.fixture(scope="module")
def adapted_bench(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    recipe = merged(tiny_recipe, CONTINUE)
    bench = Bench(tmp_path_factory.mktemp("adapted"), recipe)
    bench.run()
    return bench


@pytest.fixture
def adapted(adapted_bench: Bench, tmp_path: Path) -> Bench:
    """A copy of a finished run of two steps whose adapter went on, to be changed."""
    return adapted_bench.copy_to(tmp_path)


pytestmark = [
    # Of peft and transformers 5.23, about each other's names.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is:FutureWarning"),
]


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


def test_a_run_of_adapters_is_whole_and_its_step_is_replayed_to_the_last_bit(
    adapted: Bench, sdpo: Sdpo
) -> None:
    run = origin(adapted)
    called = sdpo("verify", "tiny", "--runs-dir", adapted.runs)
    assert called.code == 0, called.told
    result, again = replayed(run, step=2)
    assert result.comparison.verdict == "bitwise identical"
    called = sdpo("verify", again.run.name, "--runs-dir", adapted.runs)
    assert called.code == 0, called.told
    called = sdpo("gc", "--runs-dir", adapted.runs)
    assert "of no run" not in called.told
    card = (run.model(2) / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base + adapter is the model, exactly" in card


def test_an_adapter_is_exported_alone_and_merged(adapted: Bench, sdpo: Sdpo) -> None:
    model, runs = origin(adapted).model(2), ("--runs-dir", adapted.runs)
    alone, weights = adapted.folder / "alone", adapted.folder / "weights"
    called = sdpo("export", "tiny", alone, "--adapter", *runs)
    assert called.code == 0, called.told
    assert (alone / "adapter_model.safetensors").read_bytes() == (
        model / "adapter_model.safetensors"
    ).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(adapted.recipe["model"]["name_or_path"])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, alone)(IDS).logits
    assert sdpo("export", "tiny", weights, "--merge", "--dtype", "fp32", *runs).code == 0
    assert not list(weights.glob("adapter*"))
    torch.testing.assert_close(logits(weights), expected, rtol=0, atol=1e-4)
    for folder in (alone, weights):
        called = sdpo("verify", folder, *runs)
        assert called.code == 0, called.told
        assert sdpo("lineage", folder, *runs).code == 0
    assert "Its adapter was merged" in (weights / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--adapter", "--merge"), "a copy is the adapter alone, or merged weights"),
        (("--adapter", "--dtype", "bf16"), "an adapter is copied as it was published"),
    ],
)
def test_forms_of_a_copy_that_contradict_each_other_are_refused(
    adapted_bench: Bench, sdpo: Sdpo, tmp_path: Path, options, told
) -> None:
    called = sdpo("export", "tiny", tmp_path / "x", *options, "--runs-dir", adapted_bench.runs)
    assert called.code == 2
    assert told in " ".join(called.told.split())


def test_an_adapter_goes_to_the_hub_with_the_name_of_its_base_there(
    adapted: Bench, sdpo: Sdpo
) -> None:
    folder, runs = adapted.folder / "would-go", ("--runs-dir", adapted.runs)
    words = ("push", "tiny", "mine/tiny", "--adapter", "--dry-run")
    nameless = sdpo(*words, folder, *runs)
    assert (nameless.code, "--base-model ORG/NAME" in nameless.told) == (2, True)
    assert not folder.exists()
    assert sdpo(*words, folder, "--base-model", "org/base", *runs).code == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert "base_model_relation: adapter" in (folder / "README.md").read_text()
    assert (folder / "adapter_model.safetensors").is_file()
    assert not any(str(adapted.folder) in file.read_text() for file in folder.glob("*.json"))
    for runs_dir in (adapted.runs, folder / "none"):
        assert sdpo("verify", folder, "--runs-dir", runs_dir).code == 0


def test_the_model_in_use_is_a_folder_that_transformers_loads(adapted: Bench, sdpo: Sdpo) -> None:
    runs = ("--runs-dir", adapted.runs)
    assert sdpo("promote", "tiny", *runs).code == 0
    folder = Path(sdpo("current", "tiny", "--path", *runs).out.strip())
    assert logits(folder).sub(logits(Path(adapted.recipe["model"]["name_or_path"]))).any()
    AutoTokenizer.from_pretrained(folder)
    new = write_new_pairs(adapted.folder / "new.jsonl", *range(12))
    called = sdpo("extend", "tiny", "--source", new, "--name", "more", *runs)
    assert called.code == 0, called.told
    grown = origin(adapted, "more")
    assert (grown.model(3) / "adapter_model.safetensors").is_file()
    record = grown.step_record("step-3")
    assert record.inputs["target"] == model_digest(folder)
    assert sdpo("verify", "more", *runs).code == 0


@pytest.mark.parametrize("handoff", ["continue", "merge"])
def test_a_run_starts_from_an_adapter(adapted: Bench, sdpo: Sdpo, handoff: str) -> None:
    """From the adapter alone, as it was saved, without a merge (torchtune#2272)."""
    start = adapted.folder / "start"
    runs = ("--runs-dir", adapted.runs)
    assert sdpo("export", "tiny", start, "--adapter", *runs).code == 0
    (start / "adapter_base.json").unlink()  # as peft itself saves one
    again = {
        "name": "again",
        "model": {"name_or_path": str(start)},
        "training": {"lora_handoff": handoff, "max_steps": 1},
        **WITHOUT_KL,
    }
    recipe = adapted.write(again)
    checked = sdpo("check", recipe)
    assert checked.code == 0, checked.told
    outcome = adapted.run(again)
    first = outcome.run.step_record("step-1")
    assert first.inputs["target"] == model_digest(start) == model_digest(origin(adapted).model(2))
    assert first.gate is not None
    assert first.gate.max_abs_difference_nats < 1e-3
    published = outcome.run.model(1)
    if handoff == "continue":
        before, after = (load_file(f / "adapter_model.safetensors") for f in (start, published))
        assert before.keys() == after.keys()
    else:
        assert (published / "model.safetensors").is_file()
    assert sdpo("verify", "again", *runs).code == 0


def test_an_adapter_of_another_form_than_the_recipe_asks_for_is_refused_by_check(
    adapted: Bench, sdpo: Sdpo
) -> None:
    values = {"model": {"name_or_path": str(origin(adapted).model(2))}, "training": {"lora_r": 4}}
    called = sdpo("check", adapted.write(values))
    assert called.code == 2
    assert "training.lora_r" in called.told
    assert "what is handed on keeps its form" in " ".join(called.told.split())


BROKEN = {
    "a tensor less": "lacks 1 of its tensors",
    "a tensor more": "have no place in its base",
    "a key that is not known": "sets layer_replication, which is not known here",
    "another kind": "is of an adapter of kind 'IA3'",
    "a pickle": "pickles are never loaded",
    "no base": "its base is not at /nowhere/S",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_or_unknown_adapter_is_refused_by_check(
    adapted: Bench, sdpo: Sdpo, what: str
) -> None:
    folder = origin(adapted).model(2)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, said = load_file(weights), json.loads(config.read_text())
    name = min(tensors)
    match what:
        case "a tensor less":
            del tensors[name]
        case "a tensor more":
            tensors["base_model.model.nothing.lora_A.weight"] = tensors[name].clone()
        case "a key that is not known":
            said["layer_replication"] = [[0, 1], [0, 2]]
        case "another kind":
            said["peft_type"] = "IA3"
        case "a pickle":
            weights.rename(folder / "adapter_model.bin")
        case "no base":
            said["base_model_name_or_path"] = "/nowhere/S"
    config.write_text(json.dumps(said))
    if weights.exists():
        save_file(tensors, weights)
    called = sdpo("check", adapted.write({"model": {"name_or_path": str(folder)}, **WITHOUT_KL}))
    assert called.code == 2
    assert BROKEN[what] in " ".join(called.told.split())
    assert "Traceback" not in called.told


def test_a_module_to_train_whole_that_is_none_is_refused_by_check(
    adapted_bench: Bench, tmp_path: Path, sdpo: Sdpo
) -> None:
    bench = Bench(tmp_path, adapted_bench.recipe)
    called = sdpo("check", bench.write({"training": {"lora_modules_to_save": ["nope"]}}))
    assert called.code == 2
    assert "lora_modules_to_save: the model has no module called nope" in " ".join(
        called.told.split()
    )


def test_an_adapter_of_a_base_in_another_precision_is_refused_by_check(
    adapted: Bench, sdpo: Sdpo
) -> None:
    start = {"name_or_path": str(origin(adapted).model(2)), "base_precision": "bf16"}
    called = sdpo("check", adapted.write({"model": start}))
    assert called.code == 2
    assert "is an adapter of a base in fp32, and model.base_precision is bf16" in " ".join(
        called.told.split()
    )


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there"
)
def test_without_bitsandbytes_its_precisions_are_refused(
    adapted_bench: Bench, tmp_path: Path, sdpo: Sdpo
) -> None:
    bench = Bench(tmp_path, adapted_bench.recipe)
    called = sdpo("check", bench.write({"model": {"base_precision": "nf4"}}))
    assert called.code == 2
    assert "the recipe wants bitsandbytes, which is not installed" in called.told


def test_steps_of_a_recipe_hand_on_one_form(adapted_bench: Bench, tmp_path: Path, sdpo) -> None:
    bench = Bench(tmp_path, adapted_bench.recipe)
    called = sdpo("check", bench.write({"steps": [{}, {"lora_r": 4}]}))
    assert called.code == 2
    assert "steps.1.lora_r (4) differs from training.lora_r (2)" in " ".join(called.told.split())


def rounded(bench: Bench, handoff: str) -> Bench:
    """A finished run like that of ``bench`` over a base in bf16."""
    values = {
        "name": handoff,
        "model": {"base_precision": "bf16"},
        "training": {"lora_handoff": handoff},
        **WITHOUT_KL,
    }
    bench.run(values)
    return bench


def test_merged_onto_the_base_as_it_was_an_adapter_is_another_model_and_by_how_much_is_said(
    adapted: Bench, sdpo: Sdpo
) -> None:
    rounded(adapted, "continue")
    runs, names = ("--runs-dir", adapted.runs), ("onto", "as-trained")
    onto, trained = (adapted.folder / name for name in names)
    called = sdpo("export", "tiny", onto, "--original-base", *runs)
    assert called.code == 2
    assert "so there is no other one: leave the option out" in " ".join(called.told.split())
    called = sdpo("export", "continue", onto, "--original-base", "--dtype", "fp32", *runs)
    assert called.code == 0, called.told
    said = re.search(
        r"another model: on (\d+) reserved pairs .* ([\d.e-]+) nats a token",
        " ".join(called.told.split()),
    )
    assert said, called.told
    assert int(said[1]) > 0
    assert 0 < float(said[2]) < 1
    base = AutoModelForCausalLM.from_pretrained(adapted.recipe["model"]["name_or_path"])
    with torch.no_grad():
        exact = PeftModel.from_pretrained(base, origin(adapted, "continue").model(2))(IDS).logits
    torch.testing.assert_close(logits(onto), exact, rtol=0, atol=1e-4)
    assert sdpo("export", "continue", trained, "--dtype", "fp32", *runs).code == 0
    assert (logits(trained) - exact).abs().max() > 1e-3


@pytest.mark.slow
def test_a_run_that_merges_into_a_rounded_base_is_whole_and_replayed_to_the_last_bit(
    adapted: Bench, sdpo: Sdpo
) -> None:
    rounded(adapted, "merge")
    run, runs = origin(adapted, "merge"), ("--runs-dir", adapted.runs)
    called = sdpo("verify", "merge", *runs)
    assert called.code == 0, called.told
    for step in (1, 2):
        found = run.step_record(f"step-{step}").merge_rounding
        assert found is not None
        assert 0 < found.nats_per_token < 1
    result, _ = replayed(run, step=2)
    assert result.comparison.verdict == "bitwise identical"
    assert sdpo("export", "merge", adapted.folder / "copy", "--dtype", "fp32", *runs).code == 0
    torch.testing.assert_close(logits(adapted.folder / "copy"), logits(run.model(2)))
