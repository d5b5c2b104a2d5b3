"""Recognise two answers with a column that says which is better, and tell who wins a row."""

from sdpo.config import ColumnsConfig
from sdpo.data.messages import common_length
from sdpo.system.json_values import Cells

_WINNERS = (
    *("winner", "label", "labels", "preference", "preferred", "choice", "better_response_id"),
    *("overall_preference", "better", "best", "preferred_response", "human_preference"),
)
_SUFFIXES = (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"), ("first", "second"), ("left", "right"))


def winner_column(row: Cells) -> str:
    """Return the column of a row whose name says that it names the better answer, or ""."""
    return next((name for name in _WINNERS if name in row), "")


def answer_columns(row: Cells) -> tuple[str, str]:
    """Return two columns of answers whose names differ in a number or letter alone, or "" twice.

    Of several such pairs (an arena's models have names beside their conversations) dialogues come
    first, then what is longest.
    """
    found = [
        (name, f"{stem}{second}")
        for name in row
        for first, second in _SUFFIXES
        if (stem := name.removesuffix(first)) != name
        and (stem or name.isalpha())
        and all(isinstance(row.get(n), str | list) for n in (name, f"{stem}{second}"))
    ]
    return max(found, key=lambda names: _weight(row, names), default=("", ""))


def _weight(row: Cells, names: tuple[str, str]) -> tuple[bool, int]:
    values = [row[name] for name in names]
    are_lists = all(isinstance(value, list) for value in values)
    return are_lists, sum(len(value) for value in values if isinstance(value, str | list))


def named_answers(row: Cells, sides: tuple[str, str]) -> str:
    """Return what to set where the two columns ``sides`` name answers and hold none.

    They say which of two others is the better and which the worse one, as `1` and `2`, or `A` and
    `B`. It is "" if nothing suggests that.
    """
    answers = answer_columns({n: v for n, v in row.items() if n not in sides})
    if not answers[0] or not all(_names(row.get(side), answers) for side in sides):
        return ""
    return (
        f"`{sides[0]}` ({row[sides[0]]!r} in the first row) names an answer and is none: "
        f"{use_winner(row, answers, winner=sides[0])}"
    )


def _names(value: object, answers: tuple[str, str]) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    label = told(value)
    whole = {name.casefold() for name in answers}
    stem = common_length(*whole)
    return label in whole | {name[stem:] for name in whole} | {"0", "1", "2"}


def use_winner(row: Cells, answers: tuple[str, str], *, winner: str = "") -> str:
    """Return what to set so that the better answer is taken as chosen in every row."""
    winner = winner or winner_column(row)
    several = [name for name in row if name.startswith("winner_")]
    if not winner and len(several) > 1:
        return (
            f"`{'`, `'.join(several)}` say it together: make one column of them, whose values say "
            f"which is better, and set the source's `columns: {{chosen: {answers[0]}, rejected: "
            f"{answers[1]}, winner: COLUMN, chosen_wins: VALUE, rejected_wins: VALUE}}`"
        )
    seen = f" ({row[winner]!r} in the first row)" if winner else ""
    return (
        f"set the source's `columns: {{chosen: {answers[0]}, rejected: {answers[1]}, winner: "
        f"{winner or 'COLUMN'}, chosen_wins: VALUE, rejected_wins: VALUE}}` with the values of "
        f"`{winner or 'COLUMN'}`{seen} by which {answers[0]} or {answers[1]} is the better one; "
        "rows with another value, as a tie, are left out. Where each answer has a score instead, "
        "set `columns.chosen_score`, `columns.rejected_score` and `contradictions: swap`"
    )


def unread_winner(row: Cells, columns: ColumnsConfig) -> str:
    """Return why two mapped columns would be mistaken for chosen and rejected in some rows.

    A column that names the winner is not read; "" if nothing suggests that.
    """
    mapped = (columns.chosen, columns.rejected)
    winner = winner_column(row)
    if (
        columns.winner
        or not winner
        or "" in mapped
        or sorted(mapped) != sorted(answer_columns(row))
    ):
        return ""
    return (
        f"`{columns.chosen}` would be the chosen answer in every row, whatever `{winner}` says: "
        f"{use_winner(row, mapped)}"
    )


def told(value: object) -> str:
    """Return a value of a winner column as it is compared: 1, 1.0 and "1" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()
