"""Mark settings whose values are names of parts, of this project or of plug-ins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from sdpo.system.json_values import Json


@dataclass(frozen=True, slots=True)
class OneOf:
    """The setting is one of ``names()``, which the schema and the form offer.

    They are asked for when a schema is made, since plug-ins are looked for then.
    """

    names: Callable[[], Sequence[str]]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Json]:
        return {"enum": list(self.names()), **handler(core_schema)}
