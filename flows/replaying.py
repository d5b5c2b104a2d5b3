"""The Prefect flow of a replay: a step of a finished run made again in a new run, and compared."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.form import fields
from flows.runpage import RunPage
from sdpo.config import StoreConfig
from sdpo.history.checkpoint import locate
from sdpo.history.replay import ReplayResult, plan_replay, replay_step


@flow(name="sdpo-replay", validate_parameters=False)
def replay(
    run: str = "",
    step: int = 1,
    overrides: list[str] = [],  # noqa: B006 - never changed; Prefect wants a list
    only: bool = False,
    name: str = "",
) -> ReplayResult:
    """Make a step of a finished run again, as it was or with a setting changed."""
