"""Show one pair to a person: the ids that are used, decoded, with the boundary between them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo.tokens.token_file import Ids, SupervisedRow, TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED_TOKENS = 4


@dataclass(frozen=True, slots=True)
class TextView:
    """A view of ids has their text (special tokens spelled out), and the first and last tokens."""

    text: str
    tokens: int
    first: tuple[str, ...]
    last: tuple[str, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class PairView:
    """A pair is shown as it is scored: ``chosen`` and ``rejected`` begin at the boundary."""

    pair_id: str
    prompt: TextView
    chosen: TextView
    rejected: TextView


@dataclass(frozen=True, slots=True)
class ExampleView:
    """An example is shown as it is trained on: ``completion`` begins at the boundary."""

    example_id: str
    prompt: TextView
    completion: TextView


def render_example(row: SupervisedRow, tokenizer: "PreTrainedTokenizerBase") -> ExampleView:
    """Return the stored ids of a supervised example as text."""
    return ExampleView(
        example_id=row.example_id,
        prompt=_view(row.prompt_ids, tokenizer),
        completion=_view(row.completion_ids, tokenizer, truncated=row.truncated),
    )


def render_pair(row: TokenRow, tokenizer: "PreTrainedTokenizerBase") -> PairView:
    """Return the stored ids of a pair as text, exactly those that are scored and their context."""
    return PairView(
        pair_id=row.pair_id,
        prompt=_view(row.prompt_ids, tokenizer),
        chosen=_view(row.chosen_ids, tokenizer, truncated=row.chosen_truncated),
        rejected=_view(row.rejected_ids, tokenizer, truncated=row.rejected_truncated),
    )


def _view(ids: Ids, tokenizer: "PreTrainedTokenizerBase", *, truncated: bool = False) -> TextView:
    values = ids.tolist()
    return TextView(
        text=tokenizer.decode(values, clean_up_tokenization_spaces=False),
        tokens=len(values),
        first=_names(values[:_NAMED_TOKENS], tokenizer),
        last=_names(values[-_NAMED_TOKENS:], tokenizer),
        truncated=truncated,
    )


def _names(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    return tuple(str(name) for name in tokenizer.convert_ids_to_tokens(ids))
