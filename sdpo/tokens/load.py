"""Load a tokenizer from the files that are digested, and from no others."""

from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.identity.model_folder import refusals, view_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path, *, code: bool = False) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in ``folder``; with ``code`` it may bring Python of its own.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    what = f"the tokenizer in {folder}"
    with refusals(what), view_of(folder, weights=False, code=code) as view:
        tokenizer = AutoTokenizer.from_pretrained(
            view, local_files_only=True, trust_remote_code=code
        )
    tokenizer.name_or_path = str(folder)  # messages name it; the view is gone
    return tokenizer
