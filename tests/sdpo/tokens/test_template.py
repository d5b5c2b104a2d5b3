from dataclasses import dataclass
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.errors import ModelError
from sdpo.tokens.template import Encoder
from sdpo.tokens.token_file import Ids


@dataclass(frozen=True)
class EncodedRow:
    """One row of :class:`~sdpo.tokens.template.Encoded`."""

    prompt: Ids
    sides: tuple[Ids, ...]
    end_appended: tuple[bool, ...]


def encode(encoder: Encoder, prompt, answer: str, *, format: str = "chat") -> EncodedRow:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    row = {
        "row": 7,
        "source": "tests",
        "format": format,
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": answer}],
    }
    encoded = encoder.encode([row], ["chosen"])
    sides, appended = encoded.sides, encoded.end_appended
    return EncodedRow(
        encoded.prompt[0], tuple(s[0] for s in sides), tuple(bool(a[0]) for a in appended)
    )


def texts(encoder: Encoder, encoded: EncodedRow) -> tuple[str, str]:
    decode = encoder.tokenizer.decode
    return decode(encoded.prompt.tolist()), decode(encoded.sides[0].tolist())


def test_the_newline_that_chatml_prints_after_its_end_token_is_cut(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer("chatml"), clock=clock)
    encoded = encode(encoder, "the dog?", "a fox")
    assert texts(encoder, encoded) == (
        "<|im_start|>user\nthe dog?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nthe dog?<|im_end|>\n<|im_start|>assistant\na fox<|im_end|>",
    )
    assert encoded.end_appended == (False,)


def test_the_templates_turn_end_and_eos_and_the_models_ids_are_end_tokens(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer("chatml"), clock=clock, end_token_ids=[5])
    assert encoder.end_tokens == ["</s>", "<|im_end|>", "<|end|>"]


def test_a_second_end_token_of_the_template_is_cut_where_the_model_stops_at_the_first(
    make_tokenizer, clock
):
    tokenizer = make_tokenizer("phi")
    turn_end = tokenizer.convert_tokens_to_ids("<|end|>")
    stops = encode(Encoder(tokenizer, clock=clock, end_token_ids=[turn_end]), "the dog?", "a fox")
    assert tokenizer.convert_ids_to_tokens(stops.sides[0].tolist())[-2:] == ["Ġfox", "<|end|>"]
    goes_on = encode(Encoder(tokenizer, clock=clock), "the dog?", "a fox")
    assert tokenizer.decode(goes_on.sides[0].tolist()).endswith("a fox<|end|>\n</s>")


def test_eos_is_appended_and_said_so_where_the_template_closes_with_no_end_token(
    make_tokenizer, clock
):
    encoder = Encoder(make_tokenizer("plain"), clock=clock)
    encoded = encode(encoder, "the dog?", "a fox")
    assert texts(encoder, encoded)[1].endswith("Assistant: a fox\n</s>")
    assert encoded.end_appended == (True,)


@pytest.mark.parametrize("template", ["chatml", "llama"])
def test_exactly_one_bos_whether_or_not_the_template_prints_it(make_tokenizer, clock, template):
    encoder = Encoder(make_tokenizer(template, bos=True), clock=clock)
    encoded = encode(encoder, "the dog?", "a fox")
    for ids in (encoded.prompt, *encoded.sides):
        assert ids[0] == encoder.tokenizer.bos_token_id
        assert (ids == encoder.tokenizer.bos_token_id).sum() == 1


def test_a_bos_printed_twice_is_kept_once(make_tokenizer, clock):
    doubled = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    encoder = Encoder(make_tokenizer(doubled, bos=True), clock=clock)
    assert texts(encoder, encode(encoder, "the dog?", "a fox"))[1] == "<s>the dog?</s>a fox</s>"


def test_a_tokenizer_that_puts_no_bos_gets_none(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer("chatml"), clock=clock)
    assert encoder.tokenizer.bos_token_id not in encode(encoder, "the dog?", "a fox").sides[0]


def test_text_is_encoded_whole_with_bos_in_front_and_one_eos(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer(bos=True), clock=clock)
    encoded = encode(encoder, "the dog", " sleeps", format="text")
    whole = encoder.tokenizer("the dog sleeps")["input_ids"]
    assert encoded.sides[0].tolist() == [*whole, encoder.tokenizer.eos_token_id]
    assert encoded.prompt.tolist() == encoder.tokenizer("the dog")["input_ids"]
    ended = encode(encoder, "the dog", " sleeps</s>", format="text")
    assert ended.sides[0].tolist() == encoded.sides[0].tolist()
    assert (encoded.end_appended, ended.end_appended) == ((True,), (False,))


def test_rows_of_both_formats_can_stand_in_one_batch(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer("chatml", bos=True), clock=clock)
    rows = [
        {
            "format": format_,
            "prompt": [{"role": "user", "content": "the dog"}],
            "chosen": [{"role": "assistant", "content": answer}],
        }
        for format_, answer in [("text", " one"), ("chat", "two"), ("text", " three")]
    ]
    [chosen] = encoder.encode(rows, ["chosen"]).sides
    decoded = [encoder.tokenizer.decode(chosen[row].tolist()) for row in range(3)]
    assert decoded == [
        "<s>the dog one</s>",
        "<s><|im_start|>user\nthe dog<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>",
        "<s>the dog three</s>",
    ]


def test_a_template_sees_the_frozen_clock(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer("date"), clock=clock)
    assert texts(encoder, encode(encoder, "the dog?", "a fox"))[0] == (
        "\nToday is 02 Jan 2024.<|im_start|>user\nthe dog?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_freezing_the_clock_changes_nothing_else_of_the_text(make_tokenizer, clock):
    used = make_tokenizer(
        "  {% if true %} {{ strftime_now('') }}\n\n  {% endif %}\n {{ messages[-1].content }}\n\n"
    )
    encoder = Encoder(used, clock=clock)
    messages = [{"role": "assistant", "content": "fox"}]
    plain = used.apply_chat_template(messages, tokenize=False)
    assert encoder._renderer.apply([messages], generation_prompt=False) == [plain]


def test_the_frozen_clock_reaches_macros_of_the_template(make_tokenizer, clock):
    template = (
        "{% macro today() %}{{ strftime_now('%A %-d %%d') }}{% endmacro %}"
        "{{ today() }}: {{ messages[-1].content }}</s>"
    )
    encoder = Encoder(make_tokenizer(template), clock=clock)
    assert texts(encoder, encode(encoder, "?", "fox"))[1] == "Tuesday 2 %d: fox</s>"


_PIECES = st.sampled_from(
    [*(f"%{c}" for c in "aAbBdHIjmMpSUwyYZx"), "%-d", "%-m", "%%", " ", "-", "d", "'Y", "é"]
)


@given(pieces=st.lists(_PIECES, max_size=8), moment=st.datetimes())
def test_the_frozen_clock_formats_as_strftime_does(make_tokenizer, pieces, moment: datetime):
    format_ = "".join(pieces)
    literal = format_.replace("'", "\\'")
    template = "{{ strftime_now('" + literal + "') }}|{{ messages[-1].content }}"
    encoder = Encoder(make_tokenizer(template), clock=moment)
    [text] = encoder._renderer.apply([[{"role": "user", "content": "x"}]], generation_prompt=False)
    assert text == moment.strftime(format_) + "|x"


def test_the_last_answers_think_block_is_completion_and_earlier_ones_are_dropped(
    make_tokenizer, clock
):
    encoder = Encoder(make_tokenizer("think"), clock=clock)
    prompt = [
        {"role": "user", "content": "the dog?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nit sleeps"},
        {"role": "user", "content": "and the fox?"},
    ]
    before = (
        "<|im_start|>user\nthe dog?<|im_end|>\n<|im_start|>assistant\nit sleeps<|im_end|>\n"
        "<|im_start|>user\nand the fox?<|im_end|>\n<|im_start|>assistant\n"
    )
    empty = texts(encoder, encode(encoder, prompt, "it jumps"))
    assert empty == (before, before + "<think>\n\n</think>\n\nit jumps<|im_end|>")
    thought = texts(encoder, encode(encoder, prompt, "<think>\nwell\n</think>\n\nit jumps"))
    assert thought == (before, before + "<think>\nwell\n</think>\n\nit jumps<|im_end|>")


def test_conversations_without_a_template_are_refused_with_what_to_do(make_tokenizer, clock):
    encoder = Encoder(make_tokenizer(), clock=clock)
    with pytest.raises(ModelError, match=r"`model\.chat_template`, or set `format: text`"):
        encode(encoder, "the dog?", "a fox")


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system \x1b messages') }}{% endif %}{{ m.content }}</s>{% endfor %}"
)


def test_a_row_that_the_template_refuses_has_a_problem_and_the_others_their_ids(
    make_tokenizer, clock
):
    encoder = Encoder(make_tokenizer(STRICT, bos=True), clock=clock)

    def row(*roles: str) -> dict[str, object]:
        prompt = [{"role": role, "content": "the dog?"} for role in roles]
        answer = [{"role": "assistant", "content": "a fox"}]
        return {"row": 7, "format": "chat", "prompt": prompt, "chosen": answer}

    rows = [row("user"), row("system", "user"), row("user", "user"), row("system", "user")]
    encoded = encoder.encode(rows, ["chosen"])
    assert [*encoded.problems] == [1, 3]
    problem = encoded.problems[1]
    assert problem.reason == "template_refuses"
    assert "refuses the roles system, user: no system \N{SYMBOL FOR ESCAPE} mess" in problem.detail
    assert "in `model.chat_template`" in problem.detail
    for index in (0, 2):
        alone = encoder.encode([rows[index]], ["chosen"])
        assert encoded.prompt[index].tolist() == alone.prompt[0].tolist()
        assert encoded.sides[0][index].tolist() == alone.sides[0][0].tolist()


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_row_of_which_the_template_refuses_one_completion_has_a_problem(
    make_tokenizer, clock, side
):
    template = STRICT.replace("m.role == 'system'", "'!' in m.content")
    encoder = Encoder(make_tokenizer(template), clock=clock)
    row = {"format": "chat", "prompt": [{"role": "user", "content": "the dog?"}]}
    for name in ("chosen", "rejected"):
        text = "a fox!" if name == side else "a fox"
        row[name] = [{"role": "assistant", "content": text}]
    assert encoder.encode([row], ["chosen", "rejected"]).problems[0].reason == "template_refuses"


def test_what_a_template_says_of_itself_is_shown_in_part(make_tokenizer, clock):
    endless = "{{ raise_exception('no \x1b' ~ 'x' * 100000) }}"
    with pytest.raises(ModelError) as refused:
        Encoder(make_tokenizer(endless), clock=clock)
    assert "no \N{SYMBOL FOR ESCAPE}xxx" in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_template_that_does_not_print_the_answer_is_refused(make_tokenizer, clock):
    with pytest.raises(ModelError, match="does not print what the assistant says"):
        Encoder(make_tokenizer("{{ messages[0].content }}"), clock=clock)


def test_a_tokenizer_without_any_end_token_is_refused(make_tokenizer, clock):
    with pytest.raises(ModelError, match="set `eos_token`"):
        Encoder(make_tokenizer(eos=None), clock=clock)


def test_truncation_and_padding_saved_with_a_tokenizer_are_not_applied(make_tokenizer, clock):
    tokenizer = make_tokenizer("chatml")
    whole = encode(Encoder(tokenizer, clock=clock), "the dog? " * 20, "a fox")
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    again = encode(Encoder(tokenizer, clock=clock), "the dog? " * 20, "a fox")
    assert again.sides[0].tolist() == whole.sides[0].tolist()
