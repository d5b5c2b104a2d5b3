"""Small real tokenizers, and files of pairs, for the tests of tokens."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_templates import trained
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from sdpo.data.schema import PAIRS_SCHEMA

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared"

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>"]

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "Question: what is the answer? Answer: the answer is not known to the fox.",
    "Write a short story about a dog that could not sleep. Once upon a time there was a dog.",
    "user assistant system Human Assistant Today is Tuesday, 2 January 2024.",
]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|end|>\n\n"
        "{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|end|>\n\n{% endif %}"
    ),
    "phi": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    # As Qwen3's: reasoning of earlier turns is dropped, the last answer gets a think block.
    "think": (
        "{% for m in messages %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
        "<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}"
        "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
        " if '</think>' in m.content else '' %}"
        "<think>\n{{ thought }}\n</think>\n\n{{ content }}"
        "{% else %}{{ content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "date": (
        "\n{% if strftime_now is defined %}Today is {{ strftime_now('%d %b %Y') }}.{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Opens a thought for the model to go on with, and prints none when the answer is there.
    "open_thought": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
}

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
WritePairs = Callable[..., Path]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """``make_tokenizer(template, bos=..., eos=...)``: a byte-level BPE of about 600 tokens."""
    learned = trained(TEXT, control=SPECIAL, vocab_size=600)

    def make(
        template: str | dict[str, str] | None = None, *, bos: bool = False, eos: str | None = "</s>"
    ) -> PreTrainedTokenizerFast:
        backend = Tokenizer.from_str(learned)
        if bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token="<pad>"
        )
        known = TEMPLATES.get(template, template) if isinstance(template, str) else template
        tokenizer.chat_template = known or None
        return tokenizer

    return make


@pytest.fixture(scope="session")
def clock() -> datetime:
    """A day long gone."""
    return datetime(2024, 1, 2, 15, 4, 5, tzinfo=UTC)


def _messages(value: Any, role: str, format_: str) -> list[dict[str, str]]:
    if not isinstance(value, str):
        return [dict(zip(("role", "content"), turn, strict=True)) for turn in value]
    return [{"role": "text" if format_ == "text" else role, "content": value}]


@pytest.fixture
def write_pairs(tmp_path: Path) -> WritePairs:
    """``write_pairs([(prompt, chosen, rejected), ...])``, each a text or (role, content) turns."""

    def write(
        triples: list[tuple[Any, Any, Any]], *, format: str = "chat", inputs: str | None = None
    ) -> Path:
        rows = [
            {
                "pair_id": f"{index:032x}",
                "prompt_key": f"{index:032x}",
                "source": "tests",
                "row": index,
                "format": format,
                "prompt": _messages(prompt, "user", format),
                "chosen": _messages(chosen, "assistant", format),
                "rejected": _messages(rejected, "assistant", format),
                "strata": [],
                "template_inputs": inputs,
            }
            for index, (prompt, chosen, rejected) in enumerate(triples)
        ]
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), path)
        return path

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder `shared` with real models and data is not beside the project")
    return SHARED
