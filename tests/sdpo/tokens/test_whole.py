"""What was given stands whole and once in the tokens of its side, over templates as they are."""

import re
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_templates import CONTROLS, END_OF_TURN, NO_SYSTEM, TEMPLATES, cut_of, tokenizer_of

from sdpo.tokens.template import Encoder
from sdpo.tokens.token_file import TokenFile
from sdpo.tokens.tokenise import tokenise_pairs


@pytest.fixture(scope="session")
def encoder_of(clock):
    return lru_cache(lambda template: Encoder(tokenizer_of(template), clock=clock))


def row_of(prompt, chosen: str, rejected: str, *, format: str = "chat") -> dict[str, object]:
    def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in pairs]

    answers = [turns(("assistant", text)) for text in (chosen, rejected)]
    return {
        **{"row": 7, "source": "tests", "format": format},
        **dict(zip(("prompt", "chosen", "rejected"), (turns(*prompt), *answers), strict=True)),
    }


@pytest.fixture
def tokens_of(tmp_path, write_pairs, clock):
    def tokens_of(triples, *, template: str, **options) -> TokenFile:
        out = tmp_path / "tokens.arrow"
        tokenise_pairs(
            write_pairs(triples, **options),
            tokenizer_of(template),
            max_length=4096,
            clock=clock,
            out=out,
        )
        return TokenFile.open(out)

    return tokens_of


def decoded(file: TokenFile, tokenizer, row: int = 0) -> tuple[str, str, str]:
    ids = file.row(row)
    return tuple(
        tokenizer.decode(part.tolist())
        for part in (ids.prompt_ids, ids.chosen_ids, ids.rejected_ids)
    )


SYSTEM, EARLIER = ("system", "Be kind to foxes."), [("user", "A cat?"), ("assistant", "Yes, cat.")]
QUESTION = ("user", "Where does the lazy dog sleep?")


def conversations(template: str):
    yield [QUESTION]
    yield [*EARLIER, QUESTION]
    if template not in NO_SYSTEM:
        yield [SYSTEM, QUESTION]
        yield [SYSTEM, *EARLIER, QUESTION]


FOREIGN = {
    "chatml": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>"),
    "llama3": ("<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>", "{}<|eot_id|>"),
    "mistral": ("[INST] {} [/INST]", "{}</s>"),
    "gemma": ("<start_of_turn>user\n{}<end_of_turn>", "{}"),
    "phi3": ("<|user|>\n{}<|end|>\n<|assistant|>", "{}<|end|>"),
    "exaone4": ("[|user|]{}", "{}[|endofturn|]"),
    "gpt_oss": ("<|start|>user<|message|>{}<|end|>", "{}<|return|>"),
    "deepseek": ("<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>", "{}"),
}


@pytest.mark.parametrize("template", ["chatml", "llama3", "mistral", "gemma", "smollm3"])
@pytest.mark.parametrize("marks", FOREIGN)
def test_marks_of_any_template_are_noted_or_refused(tokens_of, template, marks):
    asked, answered = FOREIGN[marks]
    rows = [(asked.format("A cat?"), answered.format("Yes."), answered.format("No."))]
    report = tokens_of([*rows, ("Is <s> a tag?", "Yes, <s> is.", "No.")], template=template).report
    own = marks == template or (marks, template) == ("chatml", "smollm3")
    assert report.reasons == ({"already_templated": 1} if own else {})
    assert report.notes == ({} if own else {"foreign_marks": 1})


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_ordinary_conversation_is_whole_in_the_tokens_of_its_side(tokens_of, template):
    tokenizer = tokenizer_of(template)
    for prompt in conversations(template):
        file = tokens_of([(prompt, "In the barn.", "It jumps.")], template=template)
        if template == "mistral_system_last" and prompt[0] == SYSTEM:
            # It prints the system text in the last message, so none where an answer is the last.
            assert file.report.reasons == {"template_drops_text": 1}
            continue
        assert file.report.reasons == {}
        before, chosen, rejected = decoded(file, tokenizer)
        for _, text in prompt:
            assert before.count(text) == 1
        for side, answer in ((chosen, "In the barn."), (rejected, "It jumps.")):
            assert side.endswith(f"{answer}{END_OF_TURN[template]}")
            assert side.count(answer) == 1


_HOSTILE = st.lists(
    st.one_of(
        st.sampled_from([*CONTROLS, "<think>", "</think>", "<think>\n", "\n</think>\n\n"]),
        st.sampled_from(["<|im_start|>user\n", "Human:", "assistant", "\n\n", " ", "", "\ufeff"]),
        st.sampled_from(
            ["/no_think", "Qz7k0Qz7k", "Qz7k0a", "<|", "|>", "[INST", "<tool_response>"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    min_size=1,
    max_size=5,
).map("".join)


def controls_in(ids: list[int], tokenizer) -> list[str]:
    names = tokenizer.convert_ids_to_tokens(ids)
    return [name for name in names if name in CONTROLS]


@settings(max_examples=60, deadline=None)
@given(system=_HOSTILE, question=_HOSTILE, chosen=_HOSTILE, rejected=_HOSTILE)
@pytest.mark.parametrize("template", TEMPLATES)
def test_hostile_text_is_whole_in_the_tokens_of_its_side_or_the_row_is_listed(
    encoder_of, template, system, question, chosen, rejected
):
    encoder = encoder_of(template)
    tokenizer, roles = encoder.tokenizer, ["user"] if template in NO_SYSTEM else ["system", "user"]
    prompt = dict(zip(roles[::-1], (question, system), strict=False))
    given_text = [(role, prompt[role] or "x") for role in roles]
    hostile = row_of(given_text, chosen, rejected)
    harmless = row_of([(role, "x") for role in roles], "y", "z")
    result = cut_of(encoder, hostile, harmless)
    if problem := result.problems[0]:
        assert problem.reason
        assert problem.detail
        return
    for parts, texts in (
        (result.prompt, [text for _, text in given_text]),
        *zip(result.completions, ([chosen], [rejected]), strict=True),
    ):
        decoded = squeezed(tokenizer.decode(parts[0].tolist()))
        assert all(squeezed(text) in decoded for text in texts)
        assert controls_in(parts[0].tolist(), tokenizer) == controls_in(
            parts[1].tolist(), tokenizer
        )


def squeezed(text: str) -> str:
    """Without the white space that templates may put around what they find in a text, and without
    the directives that they take out of it."""
    return "".join(re.sub(r"/no_think|/think", "", text).split())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_token_within_a_text_is_text(encoder_of, template, control):
    encoder = encoder_of(template)
    question, answer = f"What does {control} mean?", f"The {control} is a mark."
    plain = cut_of(encoder, row_of([("user", "x")], "y", "z"))
    result = cut_of(encoder, row_of([("user", question)], answer, "No idea."))
    assert result.reasons == [None]
    tokenizer = encoder.tokenizer
    for ids, others, text in (
        (result.prompt, plain.prompt, question),
        (result.completions[0], plain.completions[0], answer),
    ):
        assert tokenizer.decode(ids[0].tolist()).count(text) == 1
        spelled = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # The text's own beginning may have merged with what the template printed before it.
        assert str(spelled[2:-2])[1:-1] in str(ids[0].tolist())
        assert controls_in(ids[0].tolist(), tokenizer) == controls_in(others[0].tolist(), tokenizer)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_that_is_in_the_template_already_is_refused_with_format_text(encoder_of, template):
    encoder = encoder_of(template)
    question = [{"role": "user", "content": "the dog?"}]
    whole = encoder._renderer.print_one(question, True)
    for text in (whole, whole.removeprefix("<s>"), whole.strip(), f"\n{whole}"):
        result = cut_of(encoder, row_of([("user", text)], "a fox", "a dog"))
        assert result.reasons == ["already_templated"]
        assert "`format: text`" in result.problems[0].detail


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_that_brings_its_end_token_along_is_refused(encoder_of, template):
    row = row_of([("user", "the dog?")], f"a fox{END_OF_TURN[template]}\n", "a dog")
    assert cut_of(encoder_of(template), row).reasons == ["already_templated"]


def test_text_of_format_text_may_spell_control_tokens(tokens_of):
    triple = ("<|im_start|>user\nthe dog?<|im_end|>\n<|im_start|>assistant\n", "a fox", "a dog")
    file = tokens_of([triple, ("the dog", " sleeps", " jumps")], template="chatml", format="text")
    assert (file.report.reasons, file.report.notes) == ({}, {"control_token_in_text": 1})
    expected = tokenizer_of("chatml")(triple[0], add_special_tokens=False)["input_ids"]
    assert file.row(0).prompt_ids.tolist() == expected


THOUGHT = "<think>\nThe dog is lazy.\n</think>\n\nIt sleeps."
DROPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def own(clock, template: str) -> Encoder:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = template
    return Encoder(tokenizer, clock=clock)


def test_a_template_that_drops_the_reasoning_of_a_completion_is_named(clock):
    row = row_of([("user", "the dog?")], THOUGHT, "<think>\nHm.\n</think>\n\nIt sleeps.")
    [problem] = cut_of(own(clock, DROPS), row).problems
    assert problem.reason == "template_drops_text"
    assert "a part of the completion: '<think>\\nThe dog is lazy.'" in problem.detail
    assert "`model.chat_template`" in problem.detail


@pytest.mark.parametrize(
    "change",
    [
        "m.content[:12]",
        "m.content | replace('In', 'Out')",
        "m.content | replace('dog', 'cat')",
        "m.content | e",
        "m.content | truncate(12)",
        "m.content.split('.')[0]",
        "m.content | replace('<b>', '')",
        "'' if m.role == 'system' else m.content",
        "m.content | replace('\"', '')",
    ],
)
def test_a_template_that_changes_a_text_is_named(clock, change):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ " + change + " }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompt = [("system", "be kind"), ("user", 'the <b>lazy</b> "dog"?')]
    encoder = own(clock, template)
    row = row_of(prompt, "It sleeps. In the <b>barn</b> of a dog & fox.", "No.")
    assert cut_of(encoder, row).reasons == ["template_drops_text"]


def test_a_template_that_prints_a_text_twice_is_named(clock):
    template = DROPS.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}")
    row = row_of([("user", "the dog?")], "It sleeps.", "It jumps.")
    [problem] = cut_of(own(clock, template), row).problems
    assert problem.reason == "template_repeats_text"


@pytest.mark.parametrize("template", ["qwen3", "exaone4"])
def test_reasoning_of_earlier_turns_may_be_dropped_as_in_use_and_is_noted(tokens_of, template):
    prompt = [("user", "the dog?"), ("assistant", THOUGHT), ("user", "and the fox?")]
    file = tokens_of([(prompt, "It jumps.", "It sleeps.")], template=template)
    assert (file.report.reasons, file.report.notes) == ({}, {"reasoning_dropped": 1})


@pytest.mark.parametrize("answer", ["</think></think>", "</think>", "<think></think><think>"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_of_tags_alone_is_whole_or_listed(encoder_of, template, answer):
    encoder = encoder_of(template)
    result = cut_of(encoder, row_of([QUESTION], answer, "It jumps."))
    if result.problems[0] is None:
        assert answer in encoder.tokenizer.decode(result.completions[0][0].tolist())
    else:
        assert template in ("qwen3", "exaone4")
        assert result.reasons == ["template_drops_text"]


@pytest.mark.parametrize("template", ["qwen3", "exaone4"])
def test_the_reasoning_of_an_answer_is_kept(tokens_of, template):
    file = tokens_of([([QUESTION], THOUGHT, "It jumps.")], template=template)
    _, chosen, _ = decoded(file, tokenizer_of(template))
    assert THOUGHT in chosen
    assert file.report.notes == {}


def test_a_system_text_that_moves_behind_the_border_is_listed_in_one_row_of_many(
    tmp_path, write_pairs, clock
):
    template = (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% if loop.last and s %}"
        "{{ s + ' ' }}{% endif %}{{ m.content }}{% elif m.role == 'assistant' %}"
        "<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = tokenizer_of("phi3")
    tokenizer.chat_template = template
    triples = [(f"Question {i}?", f"good {i}", f"bad {i}") for i in range(199)]
    late = [("system", "S."), ("user", "Hello?"), ("assistant", "Hi."), ("user", "Why?")]
    path, out = write_pairs([*triples, (late, "good one", "bad one")]), tmp_path / "tokens.arrow"
    report = tokenise_pairs(path, tokenizer, max_length=64, clock=clock, out=out)
    assert report.reasons == {"template_drops_text": 1}
    assert "row 199 of source `tests`" in report.examples["template_drops_text"]
    assert "prompt's system message: 'S.'" in report.examples["template_drops_text"]


def test_words_of_the_user_within_a_completion_are_noted(tokens_of):
    turns = [("assistant", "which dog?"), ("user", "the lazy one"), ("assistant", "it sleeps")]
    file = tokens_of([("the dog?", turns, "a fox")], template="chatml")
    assert file.report.notes == {"user_turn_in_completion": 1}
    assert file.report.examples["user_turn_in_completion"] == "row 0 of source `tests`"
