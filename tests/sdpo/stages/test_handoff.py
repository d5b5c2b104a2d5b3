"""With lora_handoff: continue the adapter itself goes from step to step, over a base that stays."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import load_policy
from sdpo.system.files import folder_digests

from ..training_helpers.runs import PreparedRun, prepare_run

pytestmark = [
    # Of peft and transformers 5.23, about each other's names.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is:FutureWarning"),
]

CONTINUE = TrainingConfig(
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.1,
    lora_handoff="continue",
    learning_rate=1e-2,
    batch_size=4,
    precision="fp32",
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    """Two steps that hand their adapter on."""
    run = prepare_run(tmp_path_factory.mktemp("handoff"), pairs={0: 4, 1: 8, 2: 6})
    run.run_step(1, CONTINUE, measure_input=True, measure_output=True)
    run.run_step(2, CONTINUE, measure_output=True)
    return run


@pytest.fixture
def copied(chain: PreparedRun, tmp_path) -> PreparedRun:
    """A copy of the chain, to change."""
    shutil.copytree(chain.folder.path, tmp_path / "run")
    folder = type(chain.folder)(tmp_path / "run")
    cache = shutil.copytree(chain.cache, tmp_path / "cache")
    return PreparedRun(folder=folder, model=chain.model, tokens=chain.tokens, cache=cache)


def plain_logps(run: PreparedRun, model, step: int) -> np.ndarray:
    """Log-probs of D_step as transformers' own logits give them, one sequence at a time."""
    tokens, found = run.token_file(), []
    for row in run.rows_of(step):
        pair = tokens.row(row["token_row"])
        sides = []
        for completion in (pair.chosen_ids, pair.rejected_ids):
            ids = torch.tensor(np.concatenate([pair.prompt_ids, completion]), dtype=torch.long)
            with torch.no_grad():
                logps = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            at = torch.arange(len(pair.prompt_ids) - 1, len(ids) - 1)
            sides.append(float(logps[at, ids[at + 1]].sum()))
        found.append(sides)
    return np.array(found)


def reference_of(run: PreparedRun, step: int) -> np.ndarray:
    table = pq.read_table(run.folder.step(step) / "reference.parquet")
    names = ("reference_chosen_logps", "reference_rejected_logps")
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def test_what_is_published_is_the_adapter_in_pefts_own_format(chain: PreparedRun) -> None:
    folder = chain.folder.model(1)
    assert not list(folder.glob("model*")), "no weights of the base"
    assert not (folder / "config.json").exists(), "transformers would look for weights"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(chain.model)
    assert config["target_modules"] == sorted(config["target_modules"])
    note = json.loads((folder / "adapter_base.json").read_text())
    assert note == {"digest": model_digest(chain.model)}
    assert chain.record(1)["outputs"]["model"] == model_digest(folder) != note["digest"]


def test_the_second_steps_reference_is_base_and_adapter_from_the_cache(chain: PreparedRun) -> None:
    """Not the base with the adapter switched off (LlamaFactory#8459, trl#4723)."""
    record = chain.record(2)
    assert record["scored_rows"] == {"computed": 0, "cached": 6}
    assert record["gate"]["max_abs_difference_nats"] < 1e-3
    assert record["gate"]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    base = AutoModelForCausalLM.from_pretrained(chain.model)
    bare = plain_logps(chain, base, 2)
    adapted = plain_logps(chain, PeftModel.from_pretrained(base, chain.folder.model(1)), 2)
    reference = reference_of(chain, 2)
    np.testing.assert_allclose(reference, adapted, atol=1e-3)
    assert np.abs(reference - bare).min() > 0.01, "the bare base would be another reference"


def test_transformers_loads_the_folder_as_the_model_that_was_measured(chain: PreparedRun) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(chain.folder.model(1))
    np.testing.assert_allclose(plain_logps(chain, loaded, 2), reference_of(chain, 2), atol=1e-3)


def test_a_step_goes_on_with_the_adapter_that_it_got(copied: PreparedRun) -> None:
    """Its losses begin at ln 2, not at 0 with every pair right (LlamaFactory#8974)."""
    shutil.rmtree(copied.folder.step(2))
    copied.run_step(2, CONTINUE.model_copy(update={"learning_rate": 1e-12, "lora_dropout": 0.0}))
    for line in copied.metrics(2):
        if "loss" in line:
            assert line["loss"] == pytest.approx(np.log(2), abs=1e-4)
            assert line["rewards/margins"] == pytest.approx(0, abs=1e-3)
    first, second = (
        load_file(copied.folder.model(step) / "adapter_model.safetensors") for step in (1, 2)
    )
    torch.testing.assert_close(second, first, rtol=0, atol=1e-9)
    assert all(tensor.any() for tensor in second.values()), "B of a fresh adapter is 0"


def test_a_step_made_again_is_the_same_to_the_last_bit(copied: PreparedRun) -> None:
    before = folder_digests(copied.folder.model(2))
    shutil.rmtree(copied.folder.step(2))
    copied.run_step(2, CONTINUE)
    after = folder_digests(copied.folder.model(2))
    assert after["adapter_model.safetensors"] == before["adapter_model.safetensors"]
    assert after["adapter_config.json"] == before["adapter_config.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_r": 8}, r"training\.lora_r: .*lora_A.*shape"),
        ({"lora_alpha": 16}, r"training\.lora_alpha.* scaled by 2 .* asks for 4"),
        (
            {"lora_target_modules": ["q_proj"]},
            r"lora_target_modules.* adapter .*has .*down",
        ),
    ],
    ids=["r", "alpha", "modules"],
)
def test_what_is_handed_on_keeps_its_form(copied: PreparedRun, change, said) -> None:
    shutil.rmtree(copied.folder.step(2))
    with pytest.raises(ConfigError, match=said):
        copied.run_step(2, CONTINUE.model_copy(update=change))


def test_a_step_that_merges_starts_from_the_same_model(copied: PreparedRun) -> None:
    """Going on over the base or from merged weights is one model (ms-swift#8047)."""
    shutil.rmtree(copied.folder.step(2))
    full = CONTINUE.model_copy(update={"lora_r": 0, "learning_rate": 1e-4})
    copied.run_step(2, full)
    record = copied.record(2)
    assert record["gate"]["max_abs_difference_nats"] < 1e-3
    assert record["scored_rows"]["cached"] == 6
    merged = load_file(copied.folder.model(2) / "model.safetensors")
    base = load_file(copied.model / "model.safetensors")
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in base.items()}
    assert all(not torch.equal(merged[name], base[name]) for name in base), "all weights train"


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    """A step in fp32, then two over the same base held in bf16, with one cache."""
    run = prepare_run(tmp_path_factory.mktemp("held"), pairs={0: 4, 1: 8, 2: 6})
    run.run_step(1, CONTINUE, measure_input=True)
    shutil.rmtree(run.folder.step(1))
    model = ModelConfig(name_or_path=str(run.model), base_precision="bf16")
    digest = model_digest(run.model, precision="bf16")
    options = {"model": model, "input_digest": digest}
    run.run_step(1, CONTINUE, measure_input=True, measure_output=True, **options)
    run.run_step(2, CONTINUE, model=model)
    return run


def test_rows_of_the_exact_base_never_serve_one_that_is_rounded(held: PreparedRun) -> None:
    assert held.record(1)["scored_rows"] == {"computed": 8, "cached": 0}
    assert held.record(2)["scored_rows"] == {"computed": 0, "cached": 6}
    for step in (1, 2):
        assert held.record(step)["gate"]["max_abs_difference_nats"] < 1e-3
    assert model_digest(held.model, precision="bf16") != model_digest(held.model)
    note = json.loads((held.folder.model(2) / "adapter_base.json").read_text())
    assert note == {"digest": model_digest(held.model), "precision": "bf16"}


def test_the_reference_is_the_rounded_base_and_its_adapter(held: PreparedRun) -> None:
    base = AutoModelForCausalLM.from_pretrained(held.model)
    exact, reserve = plain_logps(held, base, 1), plain_logps(held, base, 0)
    with torch.no_grad():
        for name, module in base.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.copy_(module.weight.bfloat16().float())
    rounded = plain_logps(held, base, 1)
    differences = np.abs(plain_logps(held, base, 0) - reserve)
    np.testing.assert_allclose(reference_of(held, 1), rounded, atol=1e-3)
    adapted = plain_logps(held, PeftModel.from_pretrained(base, held.folder.model(1)), 2)
    np.testing.assert_allclose(reference_of(held, 2), adapted, atol=1e-3)
    found = held.record(1)["base_rounding"]
    assert (found["precision"], found["pairs"]) == ("bf16", 4)
    tokens, counts = held.token_file(), []
    for row in held.rows_of(0):
        pair = tokens.row(row["token_row"])
        counts += [len(pair.chosen_ids), len(pair.rejected_ids)]
    assert found["nats_per_token"] == pytest.approx(differences.sum() / sum(counts), rel=0.05)
    assert found["largest_nats"] == pytest.approx(differences.max(), rel=0.05)
    assert np.abs(exact - rounded).max() > 1e-3
    assert "base_rounding" not in held.record(2)


@pytest.fixture(scope="module", params=["bf16", "nf4", "int8"])
def merging(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PreparedRun]:
    """Two steps over a base in fewer bits, each merged into it, and beside them a handed on one."""
    if request.param != "bf16":
        pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    run = prepare_run(tmp_path_factory.mktemp("merging"), pairs={0: 4, 1: 8, 2: 6})
    model = ModelConfig(name_or_path=str(run.model), base_precision=request.param)
    options = {"model": model, "input_digest": model_digest(run.model, precision=request.param)}
    run.run_step(1, CONTINUE, **options)
    shutil.move(run.folder.model(1), run.folder.path / "handed-on")
    shutil.rmtree(run.folder.step(1))
    merge = CONTINUE.model_copy(update={"lora_handoff": "merge"})
    run.run_step(1, merge, measure_input=True, measure_output=True, **options)
    run.run_step(2, merge, measure_output=True, model=model)
    return request.param, run


def test_what_is_merged_into_a_rounded_base_is_rounded_again_and_goes_on_so(merging) -> None:
    """M_1 is the folder's weights as they are, and to round these again changes nothing."""
    precision, run = merging
    record = run.record(2)
    assert record["scored_rows"] == {"computed": 0, "cached": 6}
    assert record["gate"]["max_abs_difference_nats"] < 1e-3
    published = AutoModelForCausalLM.from_pretrained(run.folder.model(1), dtype=torch.float32)
    np.testing.assert_allclose(plain_logps(run, published, 2), reference_of(run, 2), atol=1e-3)
    digest = model_digest(run.folder.model(1))
    assert run.record(1)["outputs"]["model"] == record["inputs"]["reference"] == digest
    held = ModelConfig(base_precision=precision)
    loaded = load_policy(run.folder.model(1), model=held, digest=digest)
    np.testing.assert_allclose(plain_logps(run, loaded, 2), reference_of(run, 2), atol=1e-3)
    assert "base_rounding" not in record


def test_what_rounding_merged_weights_again_changes_is_measured_against_what_was_trained(
    merging,
) -> None:
    precision, run = merging
    trained = load_policy(
        run.folder.path / "handed-on", model=ModelConfig(base_precision=precision)
    ).eval()
    published = AutoModelForCausalLM.from_pretrained(run.folder.model(1), dtype=torch.float32)
    differences = np.abs(plain_logps(run, published, 0) - plain_logps(run, trained, 0))
    found = run.record(1)["merge_rounding"]
    assert (found["precision"], found["pairs"]) == (precision, 4)
    assert found["largest_nats"] == pytest.approx(differences.max(), rel=0.05)
    assert differences.max() > 1e-3


def with_base_at(folder, where) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(where)}
    path.write_text(json.dumps(config))


def test_a_base_that_is_gone_or_another_one_is_refused(copied: PreparedRun, tmp_path) -> None:
    folder = copied.folder.model(1)
    digest = model_digest(folder)
    with_base_at(folder, tmp_path / "gone")
    assert model_digest(folder) == digest, "where the base is does not count"
    with pytest.raises(ModelError, match=r"its base is not at .*gone.*base_model_name_or_path"):
        load_policy(folder, model=ModelConfig(), digest=digest)
    other = shutil.copytree(copied.model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(
        {n: t + 1e-3 for n, t in weights.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    with_base_at(folder, other)
    with pytest.raises(ModelError, match="other is not the model this run was made with"):
        load_policy(folder, model=ModelConfig(), digest=digest)
    with_base_at(folder, shutil.copytree(copied.model, tmp_path / "moved"))
    load_policy(folder, model=ModelConfig(), digest=digest)


def test_another_adapter_in_its_place_is_refused(copied: PreparedRun) -> None:
    spec = copied.spec(2, CONTINUE)
    path = copied.folder.model(1) / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * 1.001 for n, t in tensors.items()}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is not the model this run was made with"):
        load_policy(spec.input_model, model=spec.model, digest=spec.input_digest)


def test_an_adapter_that_lacks_a_tensor_or_has_one_too_many_is_refused(copied: PreparedRun) -> None:
    folder = copied.folder.model(1)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(ModelError, match=r"lacks 1 of its tensors .*they would be random"):
        load_policy(folder, model=ModelConfig())
    save_file(tensors | {name.replace("layers.0", "layers.9"): tensors[name].clone()}, path)
    with pytest.raises(ModelError, match=r"1 tensors of the adapter have no place in its base"):
        load_policy(folder, model=ModelConfig())
