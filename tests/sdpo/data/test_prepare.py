"""From sources to pairs.parquet and rejected_rows.jsonl."""

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpo.config import DataConfig
from sdpo.data import pairs_file
from sdpo.data.duplicates import mixture
from sdpo.data.keys import draw_key, pair_id
from sdpo.data.pairs_file import iter_pairs, pair_from_row
from sdpo.data.prepare import prepare_pairs
from sdpo.data.prompts import Rejection
from sdpo.data.schema import PAIRS_SCHEMA, Message
from sdpo.errors import ConfigError, DataError


def row(prompt, chosen="yes", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def many(count, start=0):
    return [row(f"What is {i}?", f"It is {i}.", f"No {i}.") for i in range(start, start + count)]


def test_pairs_come_out_in_order_with_all_their_columns(write, prepare):
    rows = [row("Q?", "yes", "no", score_chosen=8, score_rejected=2.5, id=1), row("R?", "a", "bc")]
    made = prepare(write(rows, "first.jsonl"), write([row("S?", "d", "e")], "second.json"))
    assert [(p.source, p.row) for p in made.pairs] == [("first", 1), ("first", 2), ("second", 0)]
    first = made.pairs[0]
    assert first.prompt == (Message("user", "Q?"),)
    assert first.chosen == (Message("assistant", "yes"),)
    assert (first.format, first.chosen_score, first.rejected_score) == ("chat", 8, 2.5)
    assert made.pairs[1].chosen_score is None
    assert first.pair_id == pair_id(first.prompt, chosen=first.chosen, rejected=first.rejected)
    table = pq.read_table(made.result.path)
    assert table.schema.equals(PAIRS_SCHEMA)
    assert table["prompt_chars"].to_pylist() == [2, 2, 2]
    assert table["rejected_chars"].to_pylist() == [2, 2, 1]
    assert made.rejected == []
    source = made.result.sources[0]
    assert (source.layout, source.read, source.kept) == ("prompt/chosen/rejected", 2, 2)
    assert source.unused_columns == ("id",)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.tuples(*[st.text(max_size=8)] * 3), min_size=1, max_size=4))
def test_any_text_goes_through_unchanged(write, prepare, texts):
    rows = [row(f"{i}|{p}", f"c{c}", f"r{r}") for i, (p, c, r) in enumerate(texts)]
    for format in ("chat", "text"):
        made = prepare(write(rows), format=format)
        through = [(p.prompt[0], p.chosen[0], p.rejected[0]) for p in made.pairs]
        assert [tuple(m.content for m in parts) for parts in through] == [
            (r["prompt"], r["chosen"], r["rejected"]) for r in rows
        ]
        assert {m.role for m in through[0]} == (
            {"text"} if format == "text" else {"user", "assistant"}
        )


def test_every_reason_is_listed_with_its_row(write, prepare):
    rows = [
        row("kept"),
        row("equal", "x", "x"),
        row("tie", score_chosen=1, score_rejected=1),
        row("", "x", "y"),
        row("a", "", "y"),
        row("b", "x", " "),
        row("kept"),
        row("swapped"),
        row("swapped", "no", "yes"),
        row("swapped"),
        row("c", 1, "y"),
        row("half \ud800"),
    ]
    made = prepare(write(rows))
    assert made.reasons() == [
        ("data", 2, "equal_sides"),
        ("data", 3, "tie"),
        ("data", 4, "empty_prompt"),
        ("data", 5, "empty_chosen"),
        ("data", 6, "empty_rejected"),
        ("data", 7, "duplicate"),
        ("data", 8, "contradictory"),
        ("data", 9, "contradictory"),
        ("data", 10, "duplicate"),
        ("data", 11, "not_text"),
        ("data", 12, "not_text"),
    ]
    details = {line["row"]: line["detail"] for line in made.rejected}
    assert details[7] == "the same pair as line 1 of `data`"
    assert "sides swapped is line 9 of `data`" in details[8]
    assert "sides swapped is line 8 of `data`" in details[9]
    counts = made.result.sources[0]
    assert (counts.read, counts.kept) == (12, 1)
    assert counts.rejected["contradictory"] == 2
    assert sum(counts.rejected.values()) + counts.kept == counts.read


def test_the_first_source_keeps_a_duplicate_whatever_its_white_space_or_unicode_form(
    write, prepare
):
    first = write([row("Ünicode  text", "yes\n", "no"), row("one")], "first.jsonl")
    second = write(
        [row("other"), row("U\u0308nicode\u00a0text ", "yes", " no"), row("UNICODE text")],
        "second.jsonl",
    )
    made = prepare(first, second)
    assert made.reasons() == [("second", 2, "duplicate")]
    assert made.rejected[0]["detail"] == "the same pair as line 1 of `first`"
    assert made.pairs[0].prompt[0].content == "Ünicode  text"
    made = prepare(second, first)
    assert made.reasons() == [("first", 1, "duplicate")]
    assert made.rejected[0]["detail"] == "the same pair as line 2 of `second`"


def test_the_same_pair_as_text_and_as_messages_is_a_duplicate(write, prepare):
    messages = {
        "prompt": [{"role": "user", "content": "Q?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    one, two = write([row("Q?")], "one.jsonl"), write([messages, row("R?")], "two.jsonl")
    assert prepare(one, two).reasons() == [("two", 1, "duplicate")]
    made = prepare({"path": one, "format": "text"}, two)
    assert made.reasons() == [("two", 1, "duplicate")]
    assert [pair.format for pair in made.pairs] == ["text", "chat"]


def test_a_pair_contradicted_in_another_source_is_out_of_both(write, prepare):
    one = write([row("Q?"), row("kept")], "one.jsonl")
    two = write([row("Q?", "no", "yes "), row("kept too")], "two.jsonl")
    made = prepare(one, two)
    assert made.reasons() == [("one", 1, "contradictory"), ("two", 1, "contradictory")]
    assert [pair.prompt[0].content for pair in made.pairs] == ["kept", "kept too"]


def test_sides_that_differ_in_white_space_alone_are_a_pair_and_no_contradiction(write, prepare):
    rows = [row("Indent:", "a\n  b", "a\nb"), row("Indent:", "a\nb", "a\n  b")]
    assert prepare(write(rows)).reasons() == [("data", 2, "duplicate")]


def test_max_pairs_and_limit_draw_the_same_pairs_whatever_the_order_of_rows(write, prepare):
    rows = many(60)
    shuffled = random.Random(1).sample(rows, len(rows))
    drawn = {}
    for name, order in (("given", rows), ("shuffled", shuffled)):
        source = {"path": write(order), "max_pairs": 20}
        made = prepare(source)
        assert made.result.sources[0].rejected == {"max_pairs": 40}
        drawn[name] = {pair.pair_id for pair in made.pairs}
        smoke = prepare(source, limit=5)
        assert smoke.result.sources[0].rejected == {"max_pairs": 40, "limit": 15}
        assert {pair.pair_id for pair in smoke.pairs} < drawn[name]
        assert [pair.row for pair in made.pairs] == sorted(pair.row for pair in made.pairs)
    assert drawn["given"] == drawn["shuffled"]
    other = prepare({"path": write(rows), "max_pairs": 20}, seed=7)
    assert {pair.pair_id for pair in other.pairs} != drawn["given"]


def test_weights_draw_the_largest_mixture_of_their_proportions_by_the_seed(write, prepare):
    paths = [write(many(n, start=100 * k), f"{k}.jsonl") for k, n in enumerate((30, 40, 7))]
    sources = [{"path": path, "weight": w} for path, w in zip(paths, (0.1, 0.3, 0), strict=True)]
    made = prepare(*sources)
    # 40 pairs at 0.3 leave 13 at 0.1; a source without a weight is taken as it is.
    assert [count.kept for count in made.result.sources] == [13, 40, 7]
    assert [count.rejected for count in made.result.sources] == [{"weight": 17}, {}, {}]
    assert {line["detail"] for line in made.rejected} == {
        "not among the 13 pairs drawn for weight 0.1"
    }
    ids = {pair.pair_id for pair in made.pairs}
    assert len(ids) == 60
    bounded = prepare({"path": paths[0], "max_pairs": 13}, paths[1], paths[2])
    assert {pair.pair_id for pair in bounded.pairs} == ids
    assert {pair.pair_id for pair in prepare(*sources, seed=7).pairs} != ids
    # Of what max_pairs and limit leave.
    smoke = prepare({**sources[0], "max_pairs": 6}, sources[1], sources[2], limit=9)
    assert [count.kept for count in smoke.result.sources] == [3, 9, 7]
    assert smoke.result.sources[0].rejected == {"max_pairs": 24, "weight": 3}
    alone = prepare(sources[0], sources[2])
    assert [count.rejected for count in alone.result.sources] == [{}, {}]


def test_a_weight_that_draws_nothing_is_refused_with_what_is_short(write, prepare):
    one, two = write(many(8), "one.jsonl"), write(many(3, start=100), "two.jsonl")
    with pytest.raises(DataError, match=r"`one`: its weight draws none of its 8.*two 100"):
        prepare({"path": one, "weight": 1}, {"path": two, "weight": 100})


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.0, 2.0, 3.5])),
        min_size=2,
        max_size=5,
    )
)
def test_a_mixture_is_the_largest_of_its_proportions(parts):
    sizes, weights = zip(*parts, strict=True)
    drawn = mixture(sizes, weights)
    tenths = [round(10 * weight) for weight in weights]
    assert all(k <= size for k, size in zip(drawn, sizes, strict=True))
    short = next(i for i, (k, size) in enumerate(zip(drawn, sizes, strict=True)) if k == size)
    for k, weight in zip(drawn, tenths, strict=True):
        assert k == sizes[short] * weight // tenths[short]


def read_pairs(path):
    return [pair_from_row(each) for batch in iter_pairs(path) for each in batch.to_pylist()]


def long_ones(pairs, _digest):
    """As a tokenizer rejects prompts that fill the length."""
    prompts = pq.read_table(pairs, columns=["prompt"])["prompt"].to_pylist()
    return {
        index: Rejection("prompt_fills_length", "too long")
        for index, [turn] in enumerate(prompts)
        if "long" in turn["content"]
    }


@pytest.mark.parametrize(("every", "limit"), [(2, 9), (7, 5), (1, 4), (30, 4)])
def test_a_limit_takes_the_first_of_the_draw_whose_tokens_can_be_used(
    write, tmp_path, every, limit
):
    rows = [row(f"{'' if k % every == 0 else 'long '}{k}", "yes", "no") for k in range(60)]
    config = DataConfig.model_validate({"sources": [{"path": write(rows)}], "limit": limit})
    options = {"default_format": "chat", "strata": [], "out": tmp_path / "run"}
    made = prepare_pairs(config, rejected_as_tokens=long_ones, **options)
    everything = prepare_pairs(
        config.model_copy(update={"limit": 0}), **options | {"out": tmp_path}
    )
    drawn = sorted(
        read_pairs(everything.path),
        key=lambda pair: draw_key(config.seed, bytes.fromhex(pair.pair_id)),
    )
    fitting = [pair.pair_id for pair in drawn if "long" not in pair.prompt[0].content]
    assert {pair.pair_id for pair in read_pairs(made.path)} == {*fitting[:limit]}
    last = max((drawn.index(p) for p in drawn if p.pair_id in fitting[:limit]), default=0)
    passed = last + 1 - limit if len(fitting) >= limit else 60 - len(fitting)
    [counts] = made.sources
    beyond = {"limit": 60 - limit - passed} if len(fitting) >= limit else {}
    assert counts.rejected == beyond | ({"prompt_fills_length": passed} if passed else {})
    lines = [json.loads(line) for line in made.rejected_path.read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == counts.rejected
    told = f"data.limit {limit} passes over {passed} pairs that cannot be used"
    assert any(told in note for note in counts.notes) == bool(passed)
    assert any(note.endswith(f"and has {len(fitting)} others") for note in counts.notes) == (
        len(fitting) < limit
    )


def test_a_mixture_under_a_limit_is_of_pairs_whose_tokens_can_be_used(write, tmp_path):
    paths = [
        write(
            [row(f"{'long ' * (k % 3 > 0)}{n} {k}", "yes", "no") for k in range(60)], f"{n}.jsonl"
        )
        for n in ("one", "two")
    ]
    sources = [{"path": path, "weight": w} for path, w in zip(paths, (1, 2), strict=True)]
    config = DataConfig.model_validate({"sources": sources, "limit": 10})
    made = prepare_pairs(
        config, default_format="chat", strata=[], out=tmp_path, rejected_as_tokens=long_ones
    )
    assert [count.kept for count in made.sources] == [5, 10]
    assert all("long" not in pair.prompt[0].content for pair in read_pairs(made.path))


def test_a_source_of_which_no_tokens_can_be_used_is_refused_with_the_first_reason(write, tmp_path):
    config = DataConfig.model_validate(
        {
            "sources": [{"path": write([row(f"long {k}", "yes", "no") for k in range(9)])}],
            "limit": 2,
        }
    )
    with pytest.raises(
        DataError, match=r"none is left \(prompt_fills_length 9\).*line \d: too long"
    ):
        prepare_pairs(
            config, default_format="chat", strata=[], out=tmp_path, rejected_as_tokens=long_ones
        )
    assert not (tmp_path / "pairs.parquet").exists()


def test_limit_is_per_source_and_more_than_there_is_takes_all(write, prepare):
    one, two = write(many(8), "one.jsonl"), write(many(3, start=100), "two.jsonl")
    made = prepare(one, two, limit=5)
    assert [count.kept for count in made.result.sources] == [5, 3]


def test_the_digest_is_of_content_alone(write, prepare, monkeypatch):
    rows = many(30)
    digest = prepare(write(rows)).result.digest
    with_noise = [row("tie", score_chosen=1, score_rejected=1), *rows, rows[0]]
    assert prepare(write(with_noise)).result.digest == digest
    monkeypatch.setattr(pairs_file, "_GROUP_ROWS", 7)
    made = prepare(write(rows))
    assert made.result.digest == digest
    assert pq.ParquetFile(made.result.path).num_row_groups == 5
    changes = [
        [{**rows[0], "chosen": "It is  0."}, *rows[1:]],
        [{**rows[0], "score_chosen": 2}, *rows[1:]],
        rows[:-1],
        [rows[1], rows[0], *rows[2:]],
    ]
    for changed in changes:
        changed[0].setdefault("score_chosen", None)
        changed[0].setdefault("score_rejected", None)
        assert prepare(write(changed)).result.digest != digest
    assert prepare(write(rows), format="text").result.digest != digest
    assert prepare({"path": write(rows), "name": "other"}).result.digest != digest


def test_repeated_prompts_are_counted(write, prepare):
    rows = [row("a", "1", "2"), row("a", "3", "4"), row(" a", "5", "6"), row("b")]
    assert prepare(write(rows)).result.repeated_prompt_share == 0.5


def test_strata_are_carried_as_text(write, prepare):
    rows = [row("a", meta={"topic": "x"}), row("b", meta={"topic": 7}), row("c")]
    made = prepare(write(rows), strata=["meta.topic"])
    assert [pair.strata for pair in made.pairs] == [
        {"meta.topic": "x"},
        {"meta.topic": "7"},
        {"meta.topic": ""},
    ]
    with pytest.raises(DataError, match=r"source `data`.*no row has the column `lang`"):
        prepare(write(rows), strata=["lang"])


def test_nothing_is_left_behind_when_a_file_is_malformed(write, prepare, tmp_path):
    good = write(many(5), "good.jsonl")
    bad = write(json.dumps(row("a")) + "\nbroken\n", "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: malformed JSON"):
        prepare(good, bad)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_failed_preparation_leaves_an_earlier_one_as_it_was(write, prepare):
    made = prepare(write(many(5)))
    before = made.result.path.read_bytes()
    with pytest.raises(DataError):
        prepare(write("broken\n"))
    assert made.result.path.read_bytes() == before
    assert sorted(p.name for p in made.result.path.parent.iterdir()) == [
        "pairs.parquet",
        "rejected_rows.jsonl",
    ]


def test_a_source_without_a_pair_left_is_named_with_its_counts(write, prepare):
    one = write([row("a", "x", "x"), row("", "x", "y"), row(" ", "x", "y")], "one.jsonl")
    with pytest.raises(
        DataError, match=r"`one`.*empty after filtering: of 3 .*empty_prompt 2, equal_sides 1"
    ):
        prepare(one)


def test_a_source_that_another_has_already_is_told_where_and_what_to_do(write, prepare, tmp_path):
    write(many(5), "again.jsonl")
    table = tmp_path / "same.parquet"
    pq.write_table(pa.Table.from_pylist(many(5)[1:]), table)
    with pytest.raises(DataError) as refused:
        prepare(str(tmp_path / "again.jsonl"), {"path": str(table), "name": "same"})
    assert str(refused.value).endswith(
        "of 4 rows none is left (duplicate 4). The first that are duplicate: row 0, the same pair "
        "as line 2 of `again`; row 1, the same pair as line 3 of `again`; row 2, the same pair as "
        "line 4 of `again`; and 1 more. Take them out of one of the files, or take the source out "
        "of the recipe"
    )


def test_a_source_that_contradicts_another_is_told_where(write, prepare):
    one, other = write([row("a", "x", "y")], "one.jsonl"), write([row("a", "y", "x")], "b.jsonl")
    with pytest.raises(DataError, match=r"`one`.*contradictory: line 1, .*is line 1 of `b`\. Take"):
        prepare(one, other)


def test_errors_in_a_row_name_source_file_and_line(write, prepare):
    path = write([row("a"), row("b", [{"role": "assistant", "content": "x"}])])
    with pytest.raises(DataError, match=r"source `data` \(.*data\.jsonl, line 2\): conversations"):
        prepare(path, format="text")


def test_sources_need_names_of_their_own(write, prepare):
    path = write(many(2))
    with pytest.raises(ConfigError, match="two sources are called `data`"):
        prepare(path, path)
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        prepare()
    with pytest.raises(ConfigError, match=r"sources\[0\] has no path"):
        prepare({"name": "x"})


def test_progress_is_told_by_source(write, tmp_path):
    told = []
    prepare_pairs(
        DataConfig.model_validate({"sources": [{"path": write(many(2500))}]}),
        default_format="chat",
        strata=["source"],
        out=tmp_path / "run",
        on_progress=lambda *call: told.append(call),
    )
    assert told == [("data", 1000, None), ("data", 2000, None), ("data", 2500, 2500)]


def test_python_memory_does_not_grow_with_the_rows(prepare, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pairs_file, "_GROUP_ROWS", 200)
    filler = "text " * 100

    def peak(count):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for i in range(count):
                file.write(json.dumps(row(f"{i} {filler}", f"{filler}{i}", f"no {i}")) + "\n")
        config = DataConfig.model_validate({"sources": [{"path": str(path)}]})
        tracemalloc.start()
        try:
            prepare_pairs(config, default_format="chat", strata=[], out=tmp_path / "run")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(400)
    # 4000 rows hold about 4 MB of text; their keys are 41 bytes each.
    assert peak(4000) - peak(400) < 500_000
