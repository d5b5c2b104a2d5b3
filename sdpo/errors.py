"""Define the errors that this project raises: one root, and beneath it whose mistake it was.

A :class:`UserError` ends the command line with exit code 2 and its message alone; a :class:`Fault`
ends it with exit code 1. Each is also the stdlib error that a library user would catch.
"""


class SdpoError(Exception):
    """This is the root of every error that is raised on purpose."""


class UserError(SdpoError, ValueError):
    """Something the user gave cannot be used. The message says what, where, and what to do."""


class ConfigError(UserError):
    """A recipe, an override or a combination of settings is not possible."""


class DataError(UserError):
    """Preference data cannot be read or used."""


class ModelError(UserError):
    """A model or tokenizer cannot be used."""


class PluginError(UserError):
    """A plug-in of another package cannot be used; the message names it and its distribution."""


class RunExistsError(UserError):
    """A run of this name exists and was made from something else."""


class ForeignFolderError(UserError):
    """A folder that is to be a run, a cache or a server's is something else already."""


class InUseError(UserError):
    """Another process holds what is needed: ``what``, and ``by`` whom."""

    def __init__(self, what: str, by: str) -> None:
        super().__init__(what, by)
        self.what = what
        self.by = by

    def __str__(self) -> str:
        return f"{self.what} is in use by {self.by}: wait for it (--wait) or stop it"


class Fault(SdpoError, RuntimeError):
    """Something went wrong that is not the user's mistake."""


class IntegrityError(Fault):
    """A file is not what its record says it is."""


class DiskFullError(Fault):
    """There is not enough space on a disk."""


class StoreError(Fault):
    """A remote store does not answer, refuses, or is full."""


class LowMemoryError(Fault):
    """Memory was short; a smaller budget is published, and the same stage can be run again."""


class LayoutError(SdpoError, RuntimeError):
    """An architecture cannot be used with a layout of tokens; another layout may serve."""


class GateError(Fault):
    """Policy and cached reference log-probs disagree before the first optimizer step."""


class DivergedError(Fault):
    """The loss became NaN or infinite."""


class Interrupted(SdpoError):
    """The user or the system asked to stop."""
