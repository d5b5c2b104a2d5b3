"""Name the models of a chain: M_t is what step t publishes, M_0 what step 1 starts from."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sdpo.errors import Fault

_BEGINS = "M_"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name is of the model after ``step``, and knows its step: ``M_2``."""

    step: int

    @classmethod
    def of(cls, text: str) -> "ModelName":
        """Return the name that ``text`` is.

        Raises:
            Fault: it is none: a guide's, or that of a model which the recipe names.
        """
        number = text.removeprefix(_BEGINS)
        if number == text or not (number.isascii() and number.isdigit()):
            raise Fault(f"{text} is not the name of a step's model (M_0, M_1, ...)")
        return cls(int(number))

    def __str__(self) -> str:
        """Return the text by which files, records and people know it."""
        return f"{_BEGINS}{self.step}"


class NamedModel(BaseModel):
    """A model of the run or of the recipe is known by its name, its folder and its digest.

    ``tokenizer`` is the digest of its own where it cuts text into other tokens than the run's, else
    empty. What a stage is told of a model is this, or derives from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: Path
    digest: str
    tokenizer: str = ""
