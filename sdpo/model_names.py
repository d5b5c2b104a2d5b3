"""What models of a chain are called: M_t is what step t publishes, M_0 what step 1 starts from."""

from dataclasses import dataclass

from sdpo.errors import Fault

_BEGINS = "M_"


@dataclass(frozen=True, slots=True)
class ModelName:
    """The name of the model after ``step``, which knows its step: ``M_2``."""

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
