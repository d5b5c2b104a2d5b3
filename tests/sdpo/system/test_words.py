"""Numbers in words of messages: one row is, two rows are."""

import pytest

from sdpo.system.words import be, counted
from sdpo.tokens.report import TokenReport


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows")])
def test_one_is_no_plural(number: int, said: str) -> None:
    assert counted(number, "row") == said
    assert be(number) == ("is" if number == 1 else "are")


def test_a_word_may_have_a_plural_of_its_own() -> None:
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "1 pair that step 2 has of its own is not used"),
        (3, "3 pairs that step 2 has of its own are not used"),
    ],
)
def test_what_tokenising_says_of_pairs_has_their_number(count: int, said: str) -> None:
    report = TokenReport(
        rows=9,
        usable=9 - count,
        reasons={"template_refuses": count},
        truncated={},
        moved_rows=0,
        most_moved_tokens=0,
        end_tokens=[],
        end_appended=0,
        notes={},
        examples={"template_refuses": "row 1"},
    )
    (told,) = report.warnings("pairs that step 2 has of its own")
    assert told.startswith(said)
