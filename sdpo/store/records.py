"""Define as models what a node leaves behind: its record, whoever wrote it.

A record says what its node's result depends on (``identity``), what came of it (``outputs``) and
the digest of every file. Fields that this version does not know stay in the model, and those that
an earlier one did not write have a default, so that the records of old runs can be read.
"""

from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from sdpo.errors import IntegrityError
from sdpo.store.budget import Budget

M = TypeVar("M", bound=BaseModel)


def first_fault(error: ValidationError) -> str:
    """Return what is wrong first with what was read, and where."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


class Part(BaseModel):
    """Records, and the parts of them, have this in common."""

    model_config = ConfigDict(frozen=True, extra="allow")


class SharedFrom(Part):
    """A shared node names the run that it is shared from, the digest of its record there, and how
    its files are linked."""

    run: str
    record: str
    links: str = "hard"


class Record(Part):
    """A record is what a node leaves behind.

    ``files``: digests by path below the run; ``created``: the time in ISO 8601."""

    identity: dict[str, JsonValue] = {}
    files: dict[str, str] = {}
    created: str = ""
    shared_from: SharedFrom | None = None


class NodeRecord(Record):
    """This is the record of any node, whose ``outputs`` are of its own kind."""

    node: str = ""
    outputs: dict[str, JsonValue] = {}

    def read_outputs(self, kind: type[M]) -> M:
        """Return what came of the node, which is of this ``kind``.

        Raises:
            IntegrityError: it is of another one.
        """
        try:
            return kind.model_validate(self.outputs)
        except ValidationError as error:
            raise IntegrityError(
                f"the record of {self.node or 'a node'} has outputs that this version of the "
                f"project cannot read: {first_fault(error)}"
            ) from error


def merged_node(step: int) -> str:
    """Return the name of the node that makes the average of the models before ``step``."""
    return f"merged-{step}"


class MergedOutputs(Part):
    """An average of models has the digest ``model``, and is ``of`` these."""

    model: str
    of: list[str]


class ModelSaid(Part):
    """A step's reference or target has a choice in the recipe and a model's name.

    ``tokens``: the token files of a reference that has a tokenizer of its own, a space between."""

    choice: str = "previous"
    name: str = ""
    tokens: str = ""

    @property
    def token_files(self) -> list[str]:
        """Return the names of the token files of a reference that has a tokenizer of its own."""
        return self.tokens.split()


class ScoredRows(Part):
    """These are how many rows were scored now, and how many were in the cache."""

    computed: int
    cached: int


class GateFacts(Part):
    """These facts the gate saw before training; see :class:`sdpo.training.gate.GateResult`."""

    loss: float | None = None
    expected_loss: float | None = None
    max_abs_difference_nats: float
    tolerance_nats: float
    pairs: int = 0
    excess_loss: float | None = None
    compared: str = "policy"
    as_trained_nats: float = 0.0


class Compiled(Part):
    """Seconds of a micro-batch before and after compiling and of compiling itself, or the reason
    why the model's own code was ``left`` to train."""

    before_s: float
    after_s: float | None = None
    compile_s: float | None = None
    left: str = ""


class Rounding(Part):
    """Log-probs under a base held in ``precision`` differ so much from those under the exact one.

    On ``pairs`` reserved pairs: the mean per token, the largest of a completion, and the mean of a
    pair's margin, in nats, without sign.
    """

    precision: str
    pairs: int
    nats_per_token: float
    largest_nats: float
    gamma_nats: float


class StepFacts(Part):
    """Only the training itself can say this of a step.

    ``gate`` is None where the objective reads no reference; then ``gate_skipped`` says so, and
    ``as_trained_nats`` is the comparison that was made instead. ``resumed_at``: optimizer steps
    from whose states it resumed. ``budget``: given where the settings did not decide it.
    ``base_rounding``: where the step starts from a base that is held in another precision;
    ``merge_rounding``: where it merges its adapter into one, and what was merged is rounded again.
    """

    gate: GateFacts | None = None
    gate_skipped: str = ""
    as_trained_nats: float = 0.0
    scored_rows: ScoredRows | None = None
    resumed_at: list[int] = []
    budget: Budget | None = None
    compiled: Compiled | None = None
    base_rounding: Rounding | None = None
    merge_rounding: Rounding | None = None


class StepRecord(Record, StepFacts):
    """This is the record of a step or guide, whose model has the digest ``outputs["model"]``.

    ``inputs`` are digests of what it was made from by role, ``models`` the choices behind them.
    """

    step: int
    name: str = ""
    kind: Literal["preference", "supervised"] = "preference"
    identity_digest: str = ""
    models: dict[str, ModelSaid] = {}
    inputs: dict[str, str] = {}
    outputs: dict[str, str]
    optimizer_steps: int = 0
    pairs: int | None = None
    examples: int | None = None
    training: dict[str, JsonValue] = {}
    timings_s: dict[str, float] = {}
    environment: dict[str, JsonValue] = {}

    _ORDER: ClassVar[tuple[str, ...]] = (
        *("step", "name", "kind", "identity", "identity_digest", "models", "inputs", "outputs"),
        *("optimizer_steps", "pairs", "examples", *StepFacts.model_fields),
        *("training", "timings_s", "environment"),
    )

    @property
    def model(self) -> str:
        """Return the digest of the model that was published."""
        return self.outputs["model"]

    def as_json(self) -> dict[str, JsonValue]:
        """Return what the file has, in the order in which a person reads it: the fields given."""
        told = self.model_dump(mode="json", exclude_unset=True)
        known = [name for name in self._ORDER if name in told]
        return {name: told[name] for name in dict.fromkeys([*known, *told])}


class SourceFacts(Part):
    """These numbers say what became of one source's rows; see
    :class:`sdpo.data.prepare.SourceCounts`."""

    name: str
    format: str = ""
    layout: str = ""
    read: int = 0
    kept: int
    rejected: dict[str, int] = {}
    unused_columns: list[str] = []


class SupervisedFacts(Part):
    """These numbers say what became of the supervised source's rows."""

    digest: str
    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = {}


class DataOutputs(Part):
    """The sources gave this: the digest of all pairs, their number, and each source's rows."""

    digest: str = ""
    pairs: int = 0
    sources: list[SourceFacts] = []
    repeated_prompt_share: float = 0.0
    supervised: SupervisedFacts | None = None


class ReserveOutputs(Part):
    """The reserve counts usable pairs and, by source, those set aside, and why others are not."""

    usable: int = 0
    reserved: dict[str, int]
    unusable: dict[str, dict[str, int]] = {}


class PlanOutputs(Part):
    """The plan's output is its number of steps."""

    steps: int


def scoring_key_of(record: Record) -> dict[str, str | int]:
    """Return the key of the cached log-probs that a node rests on; empty where there are none."""
    scoring = record.identity.get("scoring")
    found = scoring.items() if isinstance(scoring, dict) else ()
    return {name: value for name, value in found if isinstance(value, str | int)}


def scored_model(record: Record) -> str:
    """Return the digest of the model whose log-probs a node rests on; empty where there is none."""
    return str(scoring_key_of(record).get("model", ""))
