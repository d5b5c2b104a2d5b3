import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpo.data.schema import MESSAGES
from sdpo.errors import ModelError
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile, row_digest
from sdpo.tokens.tokenise import tokenise_pairs, tokenise_supervised
from sdpo.tokens.view import render_pair


@pytest.fixture
def tokens_of(tmp_path, make_tokenizer, write_pairs, clock):
    def tokens_of(
        triples, *, template="chatml", bos=False, format="chat", max_length=256, **kwargs
    ):
        out = tmp_path / "tokens.arrow"
        path = write_pairs(triples, format=format)
        tokenizer = make_tokenizer(template, bos=bos)
        report = tokenise_pairs(
            path, tokenizer, max_length=max_length, clock=clock, out=out, **kwargs
        )
        file = TokenFile.open(out)
        assert file.report == report
        return file

    return tokens_of


def test_a_pair_is_stored_as_prompt_and_two_completions(tokens_of, make_tokenizer):
    file = tokens_of([("the dog?", "a fox", "the dog sleeps")])
    tokenizer = make_tokenizer("chatml")
    row = file.row(0)
    assert tokenizer.decode(row.prompt_ids.tolist()).endswith("assistant\n")
    assert tokenizer.decode(row.chosen_ids.tolist()) == "a fox<|im_end|>"
    assert tokenizer.decode(row.rejected_ids.tolist()) == "the dog sleeps<|im_end|>"
    assert row.pair_id == f"{0:032x}"
    assert (file.report.rows, file.report.usable, file.report.reasons) == (1, 1, {})


def test_every_unusable_row_stays_with_its_reason(tokens_of):
    file = tokens_of(
        [
            ("the dog?", "a fox", "the dog sleeps"),
            ("the dog sleeps " * 30, "a fox", "a dog"),
            ("the dog?", "a fox<|im_end|>", "a dog"),
            ("the dog?", "a fox", "a fox"),
            ("the dog?", "a fox", ""),
            ("the dog?", "the dog sleeps" * 20, "the dog sleeps" * 21),
        ],
        max_length=40,
    )
    assert file.usable.tolist() == [True, False, False, False, False, False]
    assert file.reasons == {
        f"{1:032x}": "prompt_fills_length",
        f"{2:032x}": "already_templated",
        f"{3:032x}": "equal_after_tokenisation",
        f"{4:032x}": "empty_completion",
        f"{5:032x}": "equal_after_tokenisation",
    }
    assert len(file) == len(file.pair_ids) == 6
    assert (file.report.rows, file.report.usable) == (6, 1)
    assert file.report.reasons["equal_after_tokenisation"] == 2


def test_a_truncated_side_is_flagged_and_has_no_end_token(tokens_of):
    file = tokens_of([("the dog?", "the dog sleeps " * 30, "a fox")], max_length=40)
    row = file.row(0)
    assert (row.chosen_truncated, row.rejected_truncated) == (True, False)
    assert len(row.prompt_ids) + len(row.chosen_ids) == 40
    assert row.chosen_ids[-1] != row.rejected_ids[-1]
    assert file.report.truncated == {"chosen": 1, "rejected": 0}


def test_end_tokens_of_the_generation_config_count_as_end_tokens(tokens_of, make_tokenizer):
    triples = [("the dog?", "a fox<|end|> jumps", "a dog")]
    other_end = make_tokenizer().convert_tokens_to_ids("<|end|>")
    options = {"template": None, "format": "text"}
    assert tokens_of(triples, **options).usable.tolist() == [True]
    ended = tokens_of(triples, end_token_ids=[other_end], **options)
    assert ended.report.reasons == {"end_token_inside": 1}
    assert "take it out" in ended.report.examples["end_token_inside"]


def test_a_template_without_end_token_is_reported(tokens_of):
    file = tokens_of([("the dog?", "a fox", "a dog")] * 3, template="plain")
    assert file.report.end_appended == 6


def test_text_gets_its_end_token_as_a_matter_of_course(tokens_of):
    file = tokens_of([("the dog", " a fox", " a dog")], template=None, format="text")
    assert file.report.end_appended == 0


def test_conversations_of_several_turns_are_kept_whole(tokens_of, make_tokenizer):
    turns = [("assistant", "which dog?"), ("user", "the lazy one"), ("assistant", "it sleeps")]
    file = tokens_of([([("system", "be kind"), ("user", "the dog?")], turns, "a fox")])
    row = file.row(0)
    assert make_tokenizer().decode(row.chosen_ids.tolist()) == (
        "which dog?<|im_end|>\n<|im_start|>user\nthe lazy one<|im_end|>\n"
        "<|im_start|>assistant\nit sleeps<|im_end|>"
    )


def test_one_boundary_for_both_sides_where_only_one_of_them_merges(tokens_of, make_tokenizer):
    file = tokens_of([("Question: ", "the dog", "1 fox")], template=None, format="text")
    row = file.row(0)
    decode = make_tokenizer().decode
    assert decode(row.prompt_ids.tolist()) == "Question:"
    assert decode(row.chosen_ids.tolist()) == " the dog</s>"
    assert decode(row.rejected_ids.tolist()) == " 1 fox</s>"
    assert (file.report.moved_rows, file.report.most_moved_tokens) == (1, 1)


def test_a_token_that_merges_across_the_border_is_scored(tokens_of, make_tokenizer):
    triples = [("Answer: ", "the dog", "the fox")] * 5
    file = tokens_of(triples, template=None, format="text")
    assert (file.report.reasons, file.report.moved_rows) == ({}, 5)
    decode = make_tokenizer().decode
    assert decode(file.row(0).prompt_ids.tolist()) == "Answer:"
    assert decode(file.row(0).chosen_ids.tolist()) == " the dog</s>"


def test_a_template_that_opens_a_thought_only_for_the_prompt_is_named(tokens_of):
    file = tokens_of([("the dog?", "a fox", "a dog")] * 2, template="open_thought")
    assert file.report.reasons == {"boundary_moved": 2}
    example = file.report.examples["boundary_moved"]
    assert "row 0 of source `tests`" in example
    assert "'<think>\\n' where with an answer it has 'a fox<|im_end|>\\n'" in example
    assert "`model.chat_template`" in example


def test_a_thought_that_the_prompt_opens_is_gone_on_with(tokens_of, make_tokenizer):
    answer = "<think>\nhm\n</think>\n\na fox"
    file = tokens_of([("the dog?", answer, "<think>\nno")], template="open_thought")
    decode = make_tokenizer().decode
    assert decode(file.row(0).prompt_ids.tolist()).endswith("<|im_start|>assistant\n<think>\n")
    assert decode(file.row(0).chosen_ids.tolist()) == "hm\n</think>\n\na fox<|im_end|>"


def test_think_blocks_move_no_boundary(tokens_of, make_tokenizer):
    file = tokens_of(
        [("the dog?", "a fox", "<think>\nhm\n</think>\n\na dog")] * 3, template="think"
    )
    assert file.report.moved_rows == 0
    decode = make_tokenizer().decode
    assert decode(file.row(0).chosen_ids.tolist()) == "<think>\n\n</think>\n\na fox<|im_end|>"
    assert decode(file.row(0).rejected_ids.tolist()).startswith("<think>\nhm\n</think>")


def test_a_conversation_without_template_publishes_nothing(tokens_of, tmp_path):
    with pytest.raises(ModelError, match="has no chat template"):
        tokens_of([("the dog?", "a fox", "a dog")], template=None)
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.parquet"]


def test_the_file_says_how_it_was_made(tokens_of, clock):
    file = tokens_of([("the dog?", "a fox", "a dog")], bos=True)
    assert file.metadata["max_length"] == "256"
    assert file.metadata["clock"] == clock.isoformat()
    assert len(file.metadata["template_digest"]) == 64
    facts = json.loads(file.metadata["tokenizer"])
    assert facts["tokens_in_front"] == ["<s>"]
    assert facts["end_tokens"] == ["</s>", "<|im_end|>"]
    assert facts["template_closing"] == "<|im_end|>\n"


def test_many_rows_come_in_order_over_several_batches_with_progress(tokens_of, make_tokenizer):
    seen: list[tuple[int, int]] = []
    triples = [("the dog?", f"fox {i}", f"dog {i}") for i in range(2300)]
    file = tokens_of(triples, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 2300) for done in (500, 1000, 1500, 2000, 2300)]
    assert file.usable.all()
    decode = make_tokenizer().decode
    for index in (0, 499, 500, 1999, 2299):
        assert decode(file.row(index).chosen_ids.tolist()) == f"fox {index}<|im_end|>"
    assert file.chosen_lengths.tolist() == [len(file.row(i).chosen_ids) for i in range(2300)]


def test_an_empty_file_gives_an_empty_file(tokens_of):
    file = tokens_of([])
    assert (len(file), file.report.rows, file.prompt_lengths.tolist()) == (0, 0, [])


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=_TEXTS, chosen=_TEXTS, rejected=_TEXTS, limit=st.integers(8, 60))
@pytest.mark.parametrize("bos", [False, True])
def test_prompt_and_side_are_the_start_of_the_full_encoding(
    tokens_of, make_tokenizer, bos, prompt, chosen, rejected, limit
):
    file = tokens_of([(prompt, chosen, rejected)], bos=bos, max_length=limit)
    if not file.usable[0]:
        return
    row, tokenizer = file.row(0), make_tokenizer("chatml")
    for text, ids, is_cut in [
        (chosen, row.chosen_ids, row.chosen_truncated),
        (rejected, row.rejected_ids, row.rejected_truncated),
    ]:
        whole = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
        full = tokenizer("<s>" * bos + whole, add_special_tokens=False)["input_ids"]
        assert [*row.prompt_ids, *ids] == full[:limit]
        assert is_cut == (len(full) > limit)


def plainly(tokenizer, prompt, sides, format):
    """Ids of the prompt and of every whole sequence, by plain Hugging Face code."""
    if format == "text":
        ids = [tokenizer(prompt + text)["input_ids"] for text in ("", *sides)]
        return ids[0], [[*side, tokenizer.eos_token_id] for side in ids[1:]]
    question = [{"role": "user", "content": prompt}]
    texts = [tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)]
    for side in sides:
        turns = [*question, {"role": "assistant", "content": side}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        texts.append(text[: text.rindex("<|im_end|>") + len("<|im_end|>")])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if tokenizer("x")["input_ids"][0] == (bos := tokenizer.bos_token_id):
        ids = [row if row[0] == bos else [bos, *row] for row in ids]
    return ids[0], ids[1:]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.text("ab \né狐", min_size=1, max_size=60), min_size=1, max_size=4),
    chosen=_TEXTS,
    rejected=_TEXTS,
    keep=st.integers(1, 40),
    room=st.integers(1, 60),
)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("template", "format"), [("chatml", "chat"), ("llama", "chat"), (None, "text")]
)
def test_a_long_prompt_keeps_its_last_tokens_and_its_bos(
    tokens_of, make_tokenizer, template, format, bos, prompts, chosen, rejected, keep, room
):
    file = tokens_of(
        [(prompt, chosen, rejected) for prompt in prompts],
        **{"template": template, "bos": bos, "format": format},
        max_prompt_length=keep,
        max_length=keep + room,
    )
    tokenizer, cut = make_tokenizer(template, bos=bos), 0
    for index in np.flatnonzero(file.usable).tolist():
        prompt, sides = plainly(tokenizer, prompts[index], (chosen, rejected), format)
        border = 0
        while border < len(prompt) and all(
            border < len(side) and side[border] == prompt[border] for side in sides
        ):
            border += 1
        kept = prompt[:border]
        if len(kept) > keep:
            has_bos = kept[0] == tokenizer.bos_token_id
            kept = kept[:has_bos] + kept[len(kept) - keep + has_bos :]
            cut += 1
        row = file.row(index)
        assert row.prompt_ids.tolist() == kept
        for side, ids in zip(sides, (row.chosen_ids, row.rejected_ids), strict=True):
            assert [*kept, *ids.tolist()] == [*kept, *side[border:]][: keep + room]
        assert row.row_digest == row_digest(row.prompt_ids, row.chosen_ids, row.rejected_ids)
    assert file.report.notes.get("prompt_cut", 0) == cut


def test_a_prompt_that_would_fill_the_length_is_used_once_its_end_is_kept(tokens_of):
    triples = [("the dog " * 40, "a fox", "a dog"), ("the dog?", "a fox", "a dog")]
    assert tokens_of(triples, max_length=40).usable.tolist() == [False, True]
    file = tokens_of(triples, max_length=40, max_prompt_length=30)
    assert file.usable.all()
    assert file.prompt_lengths.tolist()[0] == 30
    assert file.report.notes == {"prompt_cut": 1}
    (told,) = file.report.warnings("pairs")
    assert "1 pair: the prompt is longer than data.max_prompt_length" in told
    assert file.metadata["max_prompt_length"] == "30"


def test_supervised_examples_are_stored_likewise(tmp_path, make_tokenizer, clock):
    schema = pa.schema(
        [
            ("example_id", pa.string()),
            ("prompt_key", pa.string()),
            ("row", pa.int64()),
            ("format", pa.string()),
            ("prompt", MESSAGES),
            ("completion", MESSAGES),
        ]
    )
    rows = [
        {
            "example_id": f"e{i}",
            "prompt_key": f"k{i}",
            "row": i,
            "format": "chat",
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
        }
        for i, (prompt, completion) in enumerate(
            [
                ("the dog?", "a fox"),
                ("the dog?", "the dog sleeps " * 30),
                ("the dog " * 40, "a fox"),
            ]
        )
    ]
    path, out = tmp_path / "supervised.parquet", tmp_path / "tokens.arrow"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    tokenizer = make_tokenizer("chatml")
    report = tokenise_supervised(path, tokenizer, max_length=40, clock=clock, out=out)
    file = SupervisedTokenFile.open(out)
    assert report == file.report
    assert report.truncated == {"completion": 1}
    assert file.usable.tolist() == [True, True, False]
    assert file.reasons == {"e2": "prompt_fills_length"}
    assert (file.example_ids, file.prompt_keys) == (["e0", "e1", "e2"], ["k0", "k1", "k2"])
    assert tokenizer.decode(file.row(0).completion_ids.tolist()) == "a fox<|im_end|>"
    assert (file.row(0).truncated, file.row(1).truncated) == (False, True)
    assert np.array_equal(file.prompt_lengths + file.completion_lengths > 0, file.usable)


def test_a_pair_is_shown_as_it_is_scored(tokens_of, make_tokenizer):
    file = tokens_of([("the dog?", "a fox", "the dog sleeps " * 30)], max_length=40)
    view = render_pair(file.row(0), make_tokenizer())
    assert view.prompt.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert view.chosen.text == "a fox<|im_end|>"
    assert view.chosen.tokens == len(file.row(0).chosen_ids)
    assert view.chosen.first == view.chosen.last == ("a", "Ġfox", "<|im_end|>")
    assert (view.chosen.truncated, view.rejected.truncated) == (False, True)
    assert len(view.rejected.last) == 4
