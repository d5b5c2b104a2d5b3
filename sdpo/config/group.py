"""Define what every group of settings has in common."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from sdpo.config.labels import labelled


class Group(BaseModel):
    """A group of settings is frozen, and an unknown key is an error."""

    main_setting: ClassVar[str] = ""
    """This is the setting that a value alone would mean, for the message that refuses it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=labelled
    )
