"""Real tokenizers and preference data: known counts, and equality with TRL's tokenisation."""

import json

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sdpo.tokens.token_file import TokenFile
from sdpo.tokens.tokenise import tokenise_pairs


@pytest.fixture
def evaluation_pairs(shared):
    lines = (shared / "data/preferences/ultrafeedback_eval.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


# Counts of shared/models/README.md, "Left out" and "n"; row 43 has equal sides.
@pytest.mark.parametrize(
    ("model", "max_length", "left_out"), [("base-2m", 1024, 8), ("stories260k", 512, 58)]
)
def test_known_numbers_of_pairs_have_prompts_that_fill_the_length(
    shared, tmp_path, write_pairs, clock, evaluation_pairs, model, max_length, left_out
):
    folder = shared / "models" / model
    end = GenerationConfig.from_pretrained(folder).eos_token_id
    report = tokenise_pairs(
        write_pairs(evaluation_pairs),
        AutoTokenizer.from_pretrained(folder),
        max_length=max_length,
        clock=clock,
        out=tmp_path / "tokens.arrow",
        end_token_ids=end if isinstance(end, list) else [end],
    )
    assert report.reasons["prompt_fills_length"] == left_out
    assert report.reasons["equal_after_tokenisation"] == 1
    assert report.usable == 200 - sum(report.reasons.values())
    assert (report.moved_rows, report.end_appended) == (0, 0)


@pytest.mark.filterwarnings("ignore")  # those of TRL itself
@pytest.mark.parametrize("format_", ["chat", "text"])
def test_ids_equal_those_of_trl(shared, tmp_path, write_pairs, clock, evaluation_pairs, format_):
    trl = pytest.importorskip("trl")
    model = shared / "models" / "base-2m"
    pairs = [
        (prompt.rstrip() + "\n" * (format_ == "text"), chosen, rejected)
        for prompt, chosen, rejected in evaluation_pairs[:12]
    ]
    roles = ("user", "assistant", "assistant")
    columns = ("prompt", "chosen", "rejected")

    def column(index: int):
        texts = [pair[index] for pair in pairs]
        if format_ == "text":
            return texts
        return [[{"role": roles[index], "content": text}] for text in texts]

    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=trl.DPOConfig(str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_dict({name: column(i) for i, name in enumerate(columns)}),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    out = tmp_path / "tokens.arrow"
    tokenise_pairs(
        write_pairs(pairs, format=format_),
        AutoTokenizer.from_pretrained(model),
        max_length=10_000,
        clock=clock,
        out=out,
    )
    tokens = TokenFile.open(out)
    assert tokens.usable.all()
    for index, expected in enumerate(trainer.train_dataset):
        row = tokens.row(index)
        for name in columns:
            assert getattr(row, f"{name}_ids").tolist() == expected[f"{name}_ids"]
