"""Keys: what makes two pairs the same, and what does not."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.data.keys import content_digest, draw_key, pair_id, pair_keys, prompt_key, squash
from sdpo.data.schema import Message

text = st.text(st.characters(codec="utf-8"), max_size=20)


def chat(prompt="What?", chosen="Yes.", rejected="No."):
    return (
        [Message("user", prompt)],
        {
            "chosen": [Message("assistant", chosen)],
            "rejected": [Message("assistant", rejected)],
        },
    )


def identity(**parts):
    prompt, sides = chat(**parts)
    return pair_id(prompt, **sides)


@pytest.mark.parametrize(
    "same", ["What  é?", " What\u00a0e\u0301?\r\n", "What\u2003é?", "What\té?"]
)
def test_white_space_and_unicode_form_do_not_change_a_key(same):
    assert identity(prompt=same) == identity(prompt="What é?")
    assert prompt_key([Message("user", same)]) == prompt_key([Message("user", "What é?")])


def test_text_roles_and_sides_change_the_identity():
    base = identity()
    assert len(base) == 32
    assert identity(prompt="What!") != base
    assert identity(chosen="yes.") != base
    assert identity(chosen="No.", rejected="Yes.") != base
    _, sides = chat()
    assert pair_id([Message("system", "What?")], **sides) != base
    assert pair_id([Message("user", "What?"), Message("user", "")], **sides) != base


def test_a_prompt_has_the_same_key_as_text_and_as_chat():
    assert prompt_key([Message("text", "What?")]) == prompt_key([Message("user", "What?")])


def test_the_swapped_key_is_the_key_of_the_swapped_pair():
    prompt, sides = chat()
    keys = pair_keys(prompt, **sides)
    back = pair_keys(prompt, chosen=sides["rejected"], rejected=sides["chosen"])
    assert (keys.pair, keys.swapped) == (back.swapped, back.pair)
    assert keys.pair != keys.swapped


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UnicodeEncodeError):
        identity(prompt="\ud800")


@given(text)
def test_squashed_text_is_stable_and_holds_no_separator(value):
    squashed = squash(value)
    assert squash(squashed) == squashed
    assert squash(unicodedata.normalize("NFD", value)) == squashed
    assert not {"\x1d", "\x1e", "\x1f"} & set(squashed)


@given(st.lists(text), st.lists(text))
def test_different_lists_of_strings_have_different_digests(left, right):
    assert (content_digest(left) == content_digest(right)) == (left == right)


def test_draws_depend_on_seed_and_pair():
    draws = {draw_key(seed, key) for seed in (1, 2) for key in (b"a" * 16, b"b" * 16)}
    assert len(draws) == 4
    assert draw_key(1, b"a" * 16) == draw_key(1, b"a" * 16)
