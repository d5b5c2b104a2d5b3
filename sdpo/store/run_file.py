"""Define what run.yaml says: recipe, inputs and versions of a run, and where it comes from."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sdpo.errors import UserError
from sdpo.store.records import Part, first_fault
from sdpo.system import machine
from sdpo.system.json_values import JsonObject


class Origin(BaseModel):
    """An origin is the run that this one replays from step ``step``, or extends by step ``step``.

    ``identity`` is the digest of its identity. ``only``: the chain ends after the step. The origin
    of an arm of a study is the arm before it, which shares what both have; then ``step`` is 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["replay", "extend", "arm"]
    run: str
    path: str
    identity: str
    step: int
    overrides: list[str] = []
    only: bool = False


class Carried(BaseModel):
    """An extended run carries its pairs and its plan over as they are, up to ``steps`` steps.

    ``data`` is the digest of the pairs, ``files`` are the digests of the files that hold them,
    ``sources`` the names of their sources, ``supervised`` the digest of S's identity where there is
    a supervised stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    data: str
    files: dict[str, str]
    sources: list[str]
    steps: int
    supervised: str = ""


class RunFile(Part):
    """This is what run.yaml says; the recipe, ``config``, is read by who knows its settings.

    ``created`` is the time in ISO 8601, ``clock`` the time that chat templates see, where it is
    another. ``plugins`` are the distributions that plug-ins were of, by their names in ``inputs``,
    which are digests.
    """

    name: str = ""
    created: str
    identity: dict[str, JsonValue]
    inputs: dict[str, str]
    config: dict[str, JsonValue]
    versions: dict[str, str] = Field(default_factory=dict)
    plugins: dict[str, str] = Field(default_factory=dict)
    clock: str = ""
    origin: Origin | None = None
    carried: Carried | None = None

    @classmethod
    def of(cls, content: JsonObject, path: Path) -> "RunFile":
        """Return what the file at ``path`` says, whose ``content`` was read.

        Raises:
            UserError: another version of this project wrote it.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            versions = content.get("versions")
            raise misfit(path, versions, first_fault(error)) from error

    def as_json(self) -> dict[str, JsonValue]:
        """Return what the file has: the fields that were given, in the order of this class."""
        return self.model_dump(mode="json", exclude_unset=True)


def misfit(path: Path, versions: object, why: str) -> UserError:
    """Return the refusal of a run.yaml that another version of this project wrote."""
    wrote = versions.get("sdpo", "unknown") if isinstance(versions, dict) else "unknown"
    return UserError(
        f"{path} does not fit this version of the project ({machine.versions()['sdpo']}; it was "
        f"written by {wrote}): {why}. Take the run up with that version, or start a new one"
    )
