"""Define what plan.json says: the partition plan in short."""

from pydantic import Field, JsonValue, ValidationError

from sdpo.errors import IntegrityError
from sdpo.store.records import Part, first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json


class LengthQuantiles(Part):
    """These are quantiles of lengths, in tokens."""

    median: float
    p95: float
    maximum: int


class StepLengths(Part):
    """A step's pairs have these lengths; ``sequence`` is that of prompt plus longer completion.

    ``*_truncated`` are shares of the pairs. What an earlier version did not write is None.
    """

    sequence: LengthQuantiles | None = None
    chosen_truncated: float | None = None
    rejected_truncated: float | None = None


class Round(Part):
    """A step's pairs are made by the model before it, in this round, from 1, of a source."""

    source: str
    round: int


class PlannedStep(Part):
    """A step of the plan has a number, from 1, its pairs, and how many are of each source.

    ``contents`` says in words what it is made of; ``digest`` is that of the pairs' ids.
    ``generated``: its pairs come into being when the chain has come to it.
    """

    step: int
    pairs: int
    sources: dict[str, int] = Field(default_factory=dict)
    contents: str = ""
    digest: str = ""
    lengths: StepLengths = StepLengths()
    generated: Round | None = None


class Overlap(Part):
    """So many prompts, with so many pairs, occur in each of these steps."""

    steps: list[int]
    prompts: int
    pairs: int


class PlanFile(Part):
    """This is what plan.json says.

    ``reserve`` counts reserved pairs by source, ``cut_prompts`` pairs whose prompt was cut.
    ``measured`` are summaries of the features that the plan rests on.
    """

    strategy: str = ""
    pairs: int = 0
    steps: list[PlannedStep]
    reserve: dict[str, int] = Field(default_factory=dict)
    overlap: list[Overlap] = Field(default_factory=list)
    cut_prompts: int = 0
    measured: dict[str, dict[str, int | float]] = Field(default_factory=dict)
    features: dict[str, dict[str, str]] = Field(default_factory=dict)

    @classmethod
    def of(cls, content: JsonValue, where: object) -> "PlanFile":
        """Return what a plan.json says, whose ``content`` was read from ``where``.

        Raises:
            IntegrityError: it has another form.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise IntegrityError(
                f"{where} has a form that this version does not know: {first_fault(error)}"
            ) from error


def read_plan(run: RunFolder) -> PlanFile:
    """Return what a run's plan.json says.

    Raises:
        IntegrityError: it has another form, or is not there.
    """
    return PlanFile.of(read_json(run.plan_file), run.plan_file)
