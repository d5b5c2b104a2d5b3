"""What every group of settings has in common."""

from pydantic import BaseModel, ConfigDict

from sdpo.config.labels import labelled


class Group(BaseModel):
    """A group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=labelled
    )
