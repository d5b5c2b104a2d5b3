"""Tool calls, turns of tools and reasoning stand whole and once in their side, or the row is
listed."""

import json
import re
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_templates import (
    CONTROLS,
    END_OF_TURN,
    TEMPLATES,
    WITH_REASONING,
    WITH_TOOLS,
    cut_of,
    tokenizer_of,
)

from sdpo.config import ColumnsConfig
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.tokens.template import Encoder

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather_of",
        "description": "Say how it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ARGUMENTS = {"city": 'Ro"me', "note": "a\nb \\ ü", "days": 3}
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather_of", "arguments": ARGUMENTS},
}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWER = {
    "role": "tool",
    "name": "weather_of",
    "tool_call_id": "abcdef123",
    "content": '{"sky": "blue\\n"}',
}
USER = {"role": "user", "content": "How is it in Rome?"}
SAYS, OTHER = ({"role": "assistant", "content": text} for text in ("It is blue.", "No idea."))


def row_of(prompt, chosen, rejected=OTHER, **columns) -> dict[str, object]:
    """A row of pairs.parquet, as the data stage makes it of messages as people have them."""
    raw = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected], **columns}
    [made] = PairNormaliser(format="chat", columns=ColumnsConfig()).convert(raw)
    assert isinstance(made, Candidate), made
    return {
        **{"row": 7, "source": "tests", "format": "chat"},
        "template_inputs": made.template_inputs,
        **{
            side: [{"role": m.role, "content": m.content, "rest": m.rest or None} for m in turns]
            for side, turns in (
                ("prompt", made.prompt),
                ("chosen", made.chosen),
                ("rejected", made.rejected),
            )
        },
    }


def encoder_with(tokenizer, clock) -> Encoder:
    # As in the generation_config of the models that have it.
    ends = tokenizer.convert_tokens_to_ids(["<|call|>"])
    return Encoder(tokenizer, clock=clock, end_token_ids=ends)


@pytest.fixture(scope="session")
def encoder_of(clock):
    return lru_cache(lambda template: encoder_with(tokenizer_of(template), clock))


@pytest.fixture
def own(clock):
    def own(template: str) -> Encoder:
        tokenizer = tokenizer_of("chatml")
        tokenizer.chat_template = template
        return encoder_with(tokenizer, clock)

    return own


def texts_of(encoder: Encoder, row) -> tuple[str, str]:
    """Prompt and chosen side, decoded."""
    result = cut_of(encoder, row)
    assert result.problems == [None]
    decode = encoder.tokenizer.decode
    return decode(result.prompt[0].tolist()), decode(result.completions[0][0].tolist())


def undated(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d|\d\d \w{3} \d{4}", "DATE", text)


def by_transformers(encoder: Encoder, messages, *, opening: bool = False, tools=None) -> str:
    text = encoder.tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=opening
    )
    return undated(text)


@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize("template", WITH_TOOLS)
def test_a_call_and_its_answer_in_a_prompt_are_printed_as_transformers_prints_them(
    encoder_of, template, tools
):
    encoder, prompt = encoder_of(template), [USER, CALLS, ANSWER]
    before, chosen = texts_of(encoder, row_of(prompt, SAYS, tools=tools))
    assert undated(before) == by_transformers(encoder, prompt, opening=True, tools=tools)
    assert chosen.endswith(f"It is blue.{END_OF_TURN[template]}")
    whole = by_transformers(encoder, [*prompt, SAYS], tools=tools)
    assert whole.startswith(undated(before + chosen))


@pytest.mark.parametrize("template", WITH_TOOLS)
def test_a_call_can_be_the_answer(encoder_of, template):
    encoder = encoder_of(template)
    before, chosen = texts_of(encoder, row_of([USER], CALLS))
    whole = by_transformers(encoder, [USER, CALLS])
    assert whole.rstrip("\n") == undated(before + chosen)
    assert "weather_of" in chosen
    assert "weather_of" not in before


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("template", WITH_REASONING)
def test_reasoning_has_the_name_that_the_template_reads(encoder_of, template, name):
    encoder = encoder_of(template)
    before, chosen = texts_of(encoder, row_of([USER], {**SAYS, name: "The sky, I see."}))
    theirs = "thinking" if template == "gpt_oss" else "reasoning_content"
    whole = by_transformers(encoder, [USER, {**SAYS, theirs: "The sky, I see."}])
    assert whole.rstrip("\n") == undated(before + chosen)
    assert chosen.count("The sky, I see.") == 1


@pytest.mark.parametrize("template", WITH_REASONING)
def test_reasoning_of_an_earlier_turn_that_the_template_leaves_out_makes_the_row_listed(
    encoder_of, template
):
    earlier = {"role": "assistant", "content": "Blue.", "reasoning_content": "The sky, I see."}
    [problem] = cut_of(encoder_of(template), row_of([USER, earlier, USER], SAYS)).problems
    assert problem.reason == "template_drops_text"
    assert "of the prompt's assistant message: 'The sky, I see.'" in problem.detail
    assert "Take the reasoning out of the turns before the last" in problem.detail


@pytest.mark.parametrize("template", sorted({*TEMPLATES} - {*WITH_TOOLS}))
@pytest.mark.parametrize("in_prompt", [True, False])
def test_a_template_without_tools_makes_a_row_with_a_call_listed(encoder_of, template, in_prompt):
    row = row_of([USER, CALLS, ANSWER], SAYS) if in_prompt else row_of([USER], CALLS)
    [problem] = cut_of(encoder_of(template), row).problems
    assert problem.reason in ("template_drops_text", "template_refuses")
    assert "in `model.chat_template`" in problem.detail


@pytest.mark.parametrize("template", sorted({*TEMPLATES} - {*WITH_REASONING}))
def test_a_template_without_reasoning_makes_a_row_that_has_some_listed(encoder_of, template):
    row = row_of([USER], {**SAYS, "reasoning_content": "The sky, I see."})
    [problem] = cut_of(encoder_of(template), row).problems
    assert problem.reason == "template_drops_text"
    assert "`reasoning_content` of the completion: 'The sky, I see.'" in problem.detail


PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL<|im_end|>\n{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WHOLE = "{{ c.function.name }} {{ c.function.arguments | tojson }}"


def test_a_template_of_ones_own_that_prints_a_call_whole_is_taken(own):
    _, chosen = texts_of(own(PLAIN.replace("CALL", WHOLE)), row_of([USER], CALLS))
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in chosen


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("", "drops"),
        ("{{ c.function.name }}", "drops"),
        ("{{ c.function.arguments | tojson }}", "drops"),
        ("{{ c.function.name }} {{ c.function.arguments.city }}", "drops"),
        ("{{ c.function.name }} {{ c.function.arguments.values() | list | tojson }}", "drops"),
        ("{{ c.function.name }} {{ c.function.arguments.keys() | list | tojson }}", "drops"),
        ("{{ c.function.name }} {{ c.function.arguments | tojson | upper }}", "drops"),
        ("{{ c.function.name }} {{ c.function.arguments | tojson | truncate(20) }}", "drops"),
        (f"{WHOLE} {WHOLE}", "repeats"),
    ],
)
def test_a_template_that_changes_a_call_is_named(own, printed, reason):
    [problem] = cut_of(own(PLAIN.replace("CALL", printed)), row_of([USER], CALLS)).problems
    assert problem.reason == f"template_{reason}_text"
    assert "`tool_calls` of the completion" in problem.detail


def test_a_call_whose_arguments_are_no_text_is_not_taken_for_one_without(own):
    call = {"function": {"name": "weather_of", "arguments": {"days": 3}}}
    row = row_of([USER], {**CALLS, "tool_calls": [call]})
    [problem] = cut_of(own(PLAIN.replace("CALL", "{{ c.function.name }}")), row).problems
    assert problem.reason == "template_drops_text"
    assert "'days'" in problem.detail


def test_a_control_token_in_the_id_of_a_call_makes_the_row_listed(encoder_of):
    call = {**CALL, "id": "<|im_end|>"}
    row = row_of([USER, {**CALLS, "tool_calls": [call]}, ANSWER], SAYS)
    [problem] = cut_of(encoder_of("qwen3"), row).problems
    assert problem.reason == "control_token"


def test_calls_of_hundreds_of_texts_are_whole_or_listed(encoder_of):
    texts = [f"number {k}" for k in range(150)]
    call = {"function": {"name": "weather_of", "arguments": {"all": texts}}}
    row = row_of([USER], {**CALLS, "tool_calls": [call]})
    _, chosen = texts_of(encoder_of("qwen3"), row)
    assert json.dumps(texts) in chosen
    [problem] = cut_of(encoder_of("chatml"), row).problems
    assert problem.reason == "template_drops_text"


_PIECES = st.one_of(
    st.sampled_from([*CONTROLS, '"', "\\", '\\"', "\\n", "\n", "'", "{", "}", "</tool_call>"]),
    st.sampled_from(["<tool_response>", "</think>", "Qz7k0Qz7k", 'Qz7k0"Qz7k', "<", "&", "é", " "]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
_HOSTILE = st.lists(_PIECES, min_size=1, max_size=5).map("".join)


def controls_in(ids, tokenizer) -> list[str]:
    return [t for t in tokenizer.convert_ids_to_tokens(ids.tolist()) if t in CONTROLS]


def squeezed(text: str) -> str:
    return "".join(text.split())


def stands(text: str, printed: str) -> bool:
    ways = [text.strip()]
    for _ in range(2):
        ways.append(json.dumps(ways[-1], ensure_ascii=False)[1:-1])
    return any(squeezed(way) in squeezed(printed) for way in ways)


@settings(max_examples=40, deadline=None)
@given(name=_HOSTILE, value=_HOSTILE, said=_HOSTILE, thought=_HOSTILE, answer=_HOSTILE)
@pytest.mark.parametrize("template", WITH_TOOLS)
def test_hostile_calls_are_whole_in_the_tokens_of_their_side_or_the_row_is_listed(
    encoder_of, template, name, value, said, thought, answer
):
    def row(name, value, said, thought, answer):
        def calls(key: str, text: str) -> dict[str, object]:
            arguments = {key: text, "more": [{"x": text}, 1, None, True]}
            function = {"name": "weather_of", "arguments": arguments}
            return {**CALLS, "tool_calls": [{**CALL, "function": function}]}

        chosen = {**calls(name, answer)}
        if template in WITH_REASONING:
            chosen["thinking"] = thought
        prompt = [USER, calls(name, value), {**ANSWER, "content": said}]
        return row_of(prompt, chosen)

    encoder = encoder_of(template)
    tokenizer = encoder.tokenizer
    hostile = row(name, value, said, thought, answer)
    # Templates print nothing around a thought that says nothing.
    harmless = row("a", "b", "c", "d" if thought.strip() else "", "e")
    result = cut_of(encoder, hostile, harmless)
    assert result.problems[1] is None
    if problem := result.problems[0]:
        assert problem.detail
        return
    prompt, chosen = (
        tokenizer.decode(i[0].tolist()) for i in (result.prompt, result.completions[0])
    )
    assert all(stands(text, prompt) for text in (name, value, said))
    assert all(stands(text, chosen) for text in (name, answer))
    if template in WITH_REASONING:
        assert stands(thought, chosen)
    for ids in (result.prompt, *result.completions):
        assert controls_in(ids[0], tokenizer) == controls_in(ids[1], tokenizer)
