"""What a file says, in every layout that is recognised, is whole in the tokens of its side or
listed: from the row as it stands there to the ids, over templates as published models have them."""

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_templates import CONTROLS, NO_SYSTEM, TEMPLATES, tokenizer_of

from sdpo.config import ColumnsConfig, SupervisedConfig
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.data.supervised import prepare_supervised
from sdpo.tokens.boundary import boundaries_of, cut
from sdpo.tokens.template import Encoder

Row = dict[str, object]


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def shared(system: str, question: str) -> list[dict[str, str]]:
    return [*([turn("system", system)] if system else []), turn("user", question)]


def dialogue(system: str, question: str, answer: str) -> list[dict[str, str]]:
    return [*shared(system, question), turn("assistant", answer)]


def transcript(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


LAYOUTS: dict[str, Callable[[str, str, str, str], Row]] = {
    # From system text, question, better and worse answer.
    "prompt, chosen, rejected": lambda s, q, c, r: {
        "system": s,
        "prompt": q,
        "chosen": c,
        "rejected": r,
    },
    "messages": lambda s, q, c, r: {
        "prompt": shared(s, q),
        "chosen": [turn("assistant", c)],
        "rejected": [turn("assistant", r)],
    },
    "messages as JSON text": lambda s, q, c, r: {
        "prompt": json.dumps(shared(s, q)),
        "chosen": json.dumps([turn("assistant", c)]),
        "rejected": json.dumps([turn("assistant", r)], ensure_ascii=False),
    },
    "parts of messages": lambda s, q, c, r: {
        "prompt": [
            {**t, "content": [{"type": "text", "text": t["content"]}]} for t in shared(s, q)
        ],
        "chosen": turn("assistant", c),
        "rejected": turn("assistant", r),
    },
    "dialogues": lambda s, q, c, r: {
        "chosen": dialogue(s, q, c),
        "rejected": dialogue(s, q, r),
    },
    "UltraFeedback": lambda s, q, c, r: {
        "prompt": q,
        "chosen": dialogue(s, q, c),
        "rejected": dialogue(s, q, r),
        "messages": dialogue(s, q, c),
    },
    "OpenAI": lambda s, q, c, r: {
        "input": {"messages": shared(s, q), "tools": []},
        "preferred_output": [turn("assistant", c)],
        "non_preferred_output": [turn("assistant", r)],
    },
    "Alpaca": lambda s, q, c, r: {
        "instruction": q,
        "input": "",
        "system": s,
        "history": [["Hi?", "Hello."]],
        "chosen": c,
        "rejected": r,
    },
    "ShareGPT": lambda s, q, c, r: {
        "system": s,
        "conversations": [{"from": "human", "value": q}],
        "chosen": {"from": "gpt", "value": c},
        "rejected": {"from": "gpt", "value": r},
    },
    "axolotl": lambda s, q, c, r: {
        "system": s,
        "question": q,
        "chosen_response": c,
        "rejected_response": r,
    },
    "ms-swift": lambda s, q, c, r: {"messages": dialogue(s, q, c), "rejected_response": r},
    "ranked answers": lambda s, q, c, r: {
        "prompt": q,
        "system": s,
        "answers": [{"answer": r, "rank": 2}, {"answer": c, "rank": 1}],
    },
    "scored responses": lambda s, q, c, r: {
        "prompt": q,
        "system": s,
        "responses": [r, c],
        "scores": [1, 2],
    },
    "transcripts": lambda s, q, c, r: {
        "chosen": transcript(q, c),
        "rejected": transcript(q, r),
        "system": s,
    },
    "transcript as a prompt": lambda s, q, c, r: {
        "prompt": transcript(q, ""),
        "chosen": c,
        "rejected": r,
        "system": s,
    },
    "whole texts": lambda s, q, c, r: {
        "chosen": f"{q} {c}",
        "rejected": f"{q} {r}",
        "system": s,
    },
}
EXAMPLES: dict[str, Callable[[str, str, str], Row]] = {
    "messages": lambda s, q, a: {"messages": dialogue(s, q, a)},
    "conversations": lambda s, q, a: {
        "system": s,
        "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
    },
    "prompt and completion": lambda s, q, a: {"prompt": q, "completion": a, "system": s},
    "prompt and response": lambda s, q, a: {"prompt": shared(s, q), "response": a},
    "Alpaca": lambda s, q, a: {"instruction": q, "output": a, "system": s},
}

_TEXT = st.lists(
    st.one_of(
        st.sampled_from([*CONTROLS, "<think>", "</think>", "<tool_call>", "</tool_response>"]),
        st.sampled_from(["Human:", "\n\nAssistant:", "### User:", "{{ x }}", "{%", '"', "\\", "'"]),
        st.sampled_from(["\n\n", " ", "\r\n", "\ufeff", "Qz7k0Qz7k", "<b>&amp;", "is", "/think"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    min_size=1,
    max_size=4,
).map("".join)


@pytest.fixture(scope="session")
def encoder_of(clock):
    return lru_cache(lambda template: Encoder(tokenizer_of(template), clock=clock))


def squeezed(text: str) -> str:
    """Without white space, and without what marks turns or is a directive of a template."""
    return "".join(
        re.sub(r"(Human|Assistant):|/no_think|/think", "", "".join(text.split())).split()
    )


def said(turns: Sequence[Row]) -> str:
    return squeezed("".join(str(message["content"]) for message in turns))


def whole_or_listed(encoder: Encoder, row: Row, sides: Sequence[str]) -> None:
    """Every message of a row stands in the tokens of its side, or the row has a problem."""
    encoded = encoder.encode([row], sides)
    result = cut(
        encoded,
        boundary=boundaries_of(encoded),
        messages=[np.array([len(row[side])]) for side in sides],
        end_ids=encoder.end_ids,
        max_length=1 << 14,
    )
    if problem := result.problems[0]:
        assert problem.detail
        return
    for name, ids in zip(("prompt", *sides), (result.prompt, *result.completions), strict=True):
        printed = squeezed(encoder.tokenizer.decode(ids[0].tolist()))
        for message in row[name]:
            assert squeezed(message["content"]) in printed


def stored(made: Candidate) -> Row:
    sides = {"prompt": made.prompt, "chosen": made.chosen, "rejected": made.rejected}
    turns = {side: [turn(m.role, m.content) for m in messages] for side, messages in sides.items()}
    return {"row": 1, "source": "tests", "format": "chat", **turns}


@settings(max_examples=60, deadline=None)
@given(template=st.sampled_from(TEMPLATES), texts=st.tuples(_TEXT, _TEXT, _TEXT, _TEXT))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_is_whole_or_listed_in_every_layout_and_template(
    encoder_of, layout, template, texts
):
    system, question, chosen, rejected = texts
    system = "" if template in NO_SYSTEM else system
    row = LAYOUTS[layout](system, question, chosen, rejected)
    [made] = PairNormaliser(format="chat", columns=ColumnsConfig()).convert(row)
    if not isinstance(made, Candidate):
        assert made.detail
        return
    read = stored(made)
    if system.strip():
        assert squeezed(system) in said(read["prompt"])
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        # Whole texts are cut where the sides part, which may be within a question or an answer.
        assert squeezed(question) + squeezed(answer) in said([*read["prompt"], *read[side]])
    whole_or_listed(encoder_of(template), read, ["chosen", "rejected"])


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(template=st.sampled_from(TEMPLATES), texts=st.tuples(_TEXT, _TEXT, _TEXT))
@pytest.mark.parametrize("layout", EXAMPLES)
def test_an_example_is_whole_or_listed_in_every_layout_and_template(
    encoder_of, tmp_path, layout, template, texts
):
    system, question, answer = texts
    system = "" if template in NO_SYSTEM else system
    path = tmp_path / "examples.jsonl"
    harmless = EXAMPLES[layout]("", "Why?", "So.")  # of nothing but a bad row no file is made
    rows = [harmless, EXAMPLES[layout](system, question, answer)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = SupervisedConfig(examples="source", path=str(path))
    prepared = prepare_supervised(config, default_format="chat", out=tmp_path)
    made = pq.read_table(prepared.path).to_pylist()[1:]
    assert len(made) + sum(prepared.rejected.values()) == 1
    for row in made:
        if system.strip():
            assert squeezed(system) in said(row["prompt"])
        assert squeezed(question) in said(row["prompt"])
        assert squeezed(answer) in said(row["completion"])
        whole_or_listed(encoder_of(template), row, ["completion"])
