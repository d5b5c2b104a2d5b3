"""The demo's model and data: the same bytes each time, and what the recipe says of them is so."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bench import DemoFiles
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.config import ProbeConfig
from sdpo.config.load import load_recipe
from sdpo.errors import ConfigError
from sdpo.inputs import demo
from sdpo.inputs.demo import model, text
from sdpo.system.files import folder_digests

RECIPE = Path(__file__).parents[3] / "flows" / "recipes" / "demo.yaml"
Rows = list[dict[str, str]]
PREFERENCES = pytest.mark.parametrize(
    "rows", [text.questions(), text.requests()], ids=["questions", "requests"]
)


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for name in demo.NAMES:
        demo.materialise(name, here)
    program = (
        "import sys; from pathlib import Path; from sdpo.inputs import demo\n"
        "for name in demo.NAMES: demo.materialise(name, Path(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(there)], check=True, timeout=60)
    written = folder_digests(there)
    assert written == folder_digests(here)
    assert len(written) == 6 + 3


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    for name in demo.NAMES:
        path = demo.materialise(name, tmp_path)
        before = path.stat().st_mtime_ns, path.stat().st_ino
        assert demo.materialise(name, tmp_path) == path
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_another_generator_version_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = demo.materialise("demo:questions", tmp_path)
    monkeypatch.setattr(demo, "GENERATOR_VERSION", demo.GENERATOR_VERSION + 1)
    assert demo.materialise("demo:questions", tmp_path) != first


@pytest.mark.parametrize("name", ["demo:question", "tiny-llama", "demo:", "demo:../questions"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        demo.materialise(name, tmp_path)
    assert all(known in str(caught.value) for known in (name, *demo.NAMES))
    assert not list(tmp_path.iterdir())


def test_the_model_loads_without_a_warning(demo_files: DemoFiles) -> None:
    # A process of its own, where transformers' own log shows on stderr, with its bars off.
    program = (
        "import sys, warnings; warnings.simplefilter('error', UserWarning)\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "load = AutoModelForCausalLM.from_pretrained\n"
        "model, info = load(sys.argv[1], output_loading_info=True)\n"
        "assert not any(info.values()), info\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(type(model).__name__, model.dtype, model.num_parameters())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(demo_files.model)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.split() == ["LlamaForCausalLM", "torch.float32", "541568"]
    assert done.stderr == ""


def test_the_weights_are_as_transformers_would_draw_them(demo_files: DemoFiles) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(demo_files.model)
    for name, tensor in loaded.named_parameters():
        if "norm" in name:
            assert (tensor == 1).all(), name
        else:
            assert abs(tensor.mean().item()) < 1e-3, name
            assert tensor.std().item() == pytest.approx(loaded.config.initializer_range, rel=0.05)
    embedding, output = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert embedding.weight is output.weight


def test_a_template_ends_every_turn_and_its_ids_decode_to_the_same_text(
    demo_files: DemoFiles,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_files.model)
    user = {"role": "user", "content": "What do owls eat?\n  Здравствуйте, 你好 🦉"}
    answer = {"role": "assistant", "content": "Owls eat mice."}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([user, answer], tokenize=False)
    assert prompt == f"{model.BOS}<|user|>{user['content']}{model.END}<|assistant|>"
    assert whole == f"{prompt}{answer['content']}{model.END}"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids) == whole


def test_plain_text_gets_one_bos_and_role_marks_are_single_special_tokens(
    demo_files: DemoFiles,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_files.model)
    assert tokenizer("Hello")["input_ids"].count(tokenizer.bos_token_id) == 1
    marks = tokenizer(list(model.ROLE_MARKS), add_special_tokens=False)["input_ids"]
    assert [len(ids) for ids in marks] == [1, 1, 1]
    assert {ids[0] for ids in marks} <= set(tokenizer.all_special_ids)


@PREFERENCES
def test_every_pair_fits_the_recipe_with_room_to_spare(rows: Rows, demo_files: DemoFiles) -> None:
    tokenizer = Tokenizer.from_file(str(demo_files.model / "tokenizer.json"))
    tokens = [len(tokenizer.encode(" ".join(row.values())).ids) for row in rows]
    assert max(tokens) + 4 <= load_recipe(RECIPE).data.max_length <= model.CONTEXT_TOKENS


@PREFERENCES
def test_a_source_has_the_stated_number_of_unusable_rows(rows: Rows) -> None:
    assert len(rows) == text.PAIRS + sum(text.UNUSABLE.values())
    seen = Counter(tuple(row.values()) for row in rows)
    swapped = [1 for p, c, r in seen if c != r and (p, r, c) in seen]
    assert {
        "duplicate": sum(seen.values()) - len(seen),
        "tie": sum(row["chosen"] == row["rejected"] for row in rows),
        "empty": sum(not row["rejected"] for row in rows),
        "contradictory": len(swapped) // 2,
    } == text.UNUSABLE


def test_sides_are_the_wrong_way_round_in_about_the_stated_share() -> None:
    pairs = [row for row in text.questions() if row["rejected"] not in {"", row["chosen"]}]
    # An unkind answer is never meant to be the better one.
    unkind = [
        row["chosen"].startswith(text._UNKIND)
        for row in pairs
        if row["chosen"].startswith(text._UNKIND) or row["rejected"].startswith(text._UNKIND)
    ]
    assert len(unkind) > 300
    assert sum(unkind) / len(unkind) == pytest.approx(text.LABEL_NOISE, abs=0.05)


def test_the_sources_share_the_stated_prompts_and_differ_in_the_rest() -> None:
    questions, requests = (
        {row["prompt"] for row in rows} for rows in (text.questions(), text.requests())
    )
    assert len(questions & requests) == text.SHARED_PROMPTS
    assert len(questions) == len(requests) == text.PAIRS


def test_only_requests_prefer_an_offer_of_more_help() -> None:
    def share(rows: Rows, side: str) -> float:
        return sum(row[side].endswith(text._OFFERS) for row in rows) / len(rows)

    # In `questions` a courteous answer ends with an offer as often on either side.
    courteous = [
        row
        for row in text.questions()
        if row["chosen"].startswith(text._OPENERS) and row["rejected"].startswith(text._OPENERS)
    ]
    assert share(courteous, "chosen") == pytest.approx(share(courteous, "rejected"), abs=0.1)
    assert share(text.requests(), "chosen") > 0.85
    assert share(text.requests(), "rejected") < 0.25


def test_the_supervised_examples_are_as_often_courteous_as_not() -> None:
    rows = text.dialogues()
    assert len(rows) == text.EXAMPLES
    assert set(rows[0]) == {"prompt", "completion"}
    courteous = sum(row["completion"].startswith(text._OPENERS) for row in rows) / len(rows)
    assert 0.5 < courteous < 0.7  # half are good answers; some bad ones are courteous but untrue


def test_the_recipe_is_valid_and_uses_what_the_demo_has() -> None:
    config = load_recipe(RECIPE)
    used = {config.model.name_or_path, config.supervised.path}
    used |= {source.path for source in config.data.sources}
    assert used == set(demo.NAMES)
    assert config.supervised.enabled
    assert config.partition.strategy == "natural"
    assert text.PAIRS * config.data.reserve.fraction >= 150
    assert config.probe.kl_prompts > 0 == ProbeConfig().kl_prompts, "off elsewhere"
