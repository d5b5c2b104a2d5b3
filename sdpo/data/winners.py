"""Two answers and a column that says which is better: recognising them, and who wins a row."""

import re

from sdpo.config import ColumnsConfig
from sdpo.system.json_values import Cells

_WINNERS = (
    *("winner", "label", "labels", "preference", "preferred", "choice", "better_response_id"),
    *("overall_preference", "better", "best", "preferred_response", "human_preference"),
)
_SUFFIXES = (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"), ("first", "second"), ("left", "right"))


def winner_column(row: Cells) -> str:
    """The column of a row whose name says that it names the better answer, or ""."""
    return next((name for name in _WINNERS if name in row), "")


def answer_columns(row: Cells) -> tuple[str, str]:
    """Two columns of answers whose names differ in a number or letter alone, or "" twice."""
    for name in row:
        for first, second in _SUFFIXES:
            stem = re.fullmatch(rf"(.*?_?){first}", name)
            if stem is None or not stem[1] or f"{stem[1]}{second}" not in row:
                continue
            if all(isinstance(row[n], str | list) for n in (name, f"{stem[1]}{second}")):
                return name, f"{stem[1]}{second}"
    return "", ""


def use_winner(row: Cells, answers: tuple[str, str]) -> str:
    """What to set so that the better answer is taken as chosen in every row."""
    winner = winner_column(row)
    seen = f" ({row[winner]!r} in the first row)" if winner else ""
    return (
        f"set the source's `columns: {{chosen: {answers[0]}, rejected: {answers[1]}, winner: "
        f"{winner or 'COLUMN'}, chosen_wins: VALUE, rejected_wins: VALUE}}` with the values of "
        f"`{winner or 'COLUMN'}`{seen} by which {answers[0]} or {answers[1]} is the better one; "
        "rows with another value, as a tie, are left out. Where each answer has a score instead, "
        "set `columns.chosen_score`, `columns.rejected_score` and `contradictions: swap`"
    )


def unread_winner(row: Cells, columns: ColumnsConfig) -> str:
    """Why two mapped columns of answers would be taken for chosen and rejected in rows where it is
    the other way round; "" if nothing speaks for it."""
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
    """A value of a winner column as it is compared: 1, 1.0 and "1" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()
