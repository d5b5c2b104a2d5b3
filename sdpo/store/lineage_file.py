"""Define what lineage.json says, the file that travels with a model."""

from pydantic import Field, JsonValue

from sdpo.store.records import ModelSaid, Part


class LineageEntry(Part):
    """An entry says what a model was made from: it is an excerpt of its step's record."""

    step: int
    name: str = ""
    kind: str = ""
    objective: str = ""
    models: dict[str, ModelSaid] = Field(default_factory=dict)
    inputs: dict[str, str]
    outputs: dict[str, str]
    identity: dict[str, JsonValue] = Field(default_factory=dict)
    identity_digest: str = ""


class ExportedAs(Part):
    """A copy in another precision has a digest of its own tensors, ``model``, and of its card.

    ``hub``: the name on the hub of a copy that went there, whose card says more than a run's.
    """

    dtype: str
    model: str
    card: str
    hub: str = ""


class LineageFile(Part):
    """This is what lineage.json says: how a model of ``run`` was made, S or the first step first.

    ``inputs`` are digests of base model, tokenizer and data. ``export``: set where the model beside
    it is a copy in another precision.
    """

    run: str = "?"
    model: str = "?"
    inputs: dict[str, str] = Field(default_factory=dict)
    steps: list[LineageEntry] = Field(min_length=1)
    export: ExportedAs | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """Return what the file has: the fields that were given, in the order of this class."""
        return self.model_dump(mode="json", exclude_unset=True)
