"""Ask for a person's approval in the Prefect UI: pause the flow run and wait for its form.

A paused run keeps its process, which does nothing but look for the answer. It holds no device, but
it holds the lineage, so that the next slot does not ask a second time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import Literal
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import NotPausedError
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from sdpo.promotion.judge import Judgement
from sdpo.promotion.retrain import Answer
from sdpo.store.run_folder import RunFolder

_POLL_S = 3
_MARGIN_S = 3600
"""Prefect fails a run whose pause timed out, so our own answer comes so many seconds before."""


class Approval(RunInput):
    """The form of a paused run asks what becomes of the new model, where none stood before it."""

    decision: Literal["hold", "promote"] = Field(
        "hold",
        title="Decision",
        description="`promote`: the new model is put in use. `hold`: the model in use stays, and "
        "these pairs are not tried again by the same rules.",
    )
    reason: str = Field("", title="Why", description="Kept in the registry and in the run.")


class Judging(RunInput):
    """The form of a paused run where the model in use replaced another one, and can go back."""

    decision: Literal["hold", "promote", "roll back"] = Field(
        "hold",
        title="Decision",
        description="`promote`: the new model is put in use. `hold`: the model in use stays, and "
        "these pairs are not tried again by the same rules. `roll back`: neither of the two; the "
        "version that the model in use replaced is in use again.",
    )
    reason: str = Field("", title="Why", description="Kept in the registry and in the run.")


_Form = Approval | Judging


def ask_in_ui(
    judgement: Judgement,
    run: RunFolder,
    *,
    page: UUID | None,
    can_roll_back: bool,
    timeout_s: float,
) -> Answer:
    """Pause the flow run until somebody answers its form, at most for ``timeout_s`` seconds.

    ``page``: the artifact by which a person judges, None where the server did not take it. Where
    nobody has answered, ``approved`` is None.
    """
    step = judgement.new
    kind: type[_Form] = Judging if can_roll_back else Approval
    both = "The numbers of both, and what both write"
    shown = f"[{both}](/artifacts/artifact/{page})" if page else both
    form = kind.with_initial_data(
        description=f"M_{step} of run {run.name} passed the gate: {judgement.reason}. Is it to "
        f"replace M_{judgement.current}? {shown} are among the artifacts; the decision is kept in "
        f"{run.path / 'promotion.json'}."
    )
    run_id = flow_run.get_id()
    assert run_id, "only a flow run can be paused"
    with _answer_in_time(UUID(run_id), timeout_s) as over:
        said = _said(form, UUID(run_id), timeout_s=timeout_s)
    if over.is_set():
        return Answer(approved=None, why=said.reason)
    return Answer(
        approved=said.decision == "promote",
        why=said.reason,
        roll_back=said.decision == "roll back",
    )


def _said(form: type[_Form], run_id: UUID, *, timeout_s: float) -> _Form:
    """Return what the form was answered with, however long the server is away meanwhile."""
    # One pause an attempt: under the key of an earlier one Prefect would not pause again.
    key = f"approval-{flow_run.run_count}"
    poll_s = max(1, min(_POLL_S, int(timeout_s / 10)))
    while True:
        try:
            # Called once more after the answer, it pauses no second time and reads the answer.
            return pause_flow_run(
                wait_for_input=form,
                timeout=int(timeout_s) + _MARGIN_S,
                poll_interval=poll_s,
                key=key,
            )
        except httpx.HTTPError as error:
            _raise_unless_away(error)
            get_run_logger().warning("the server does not answer, still waiting: %s", error)
            _wait_while_paused(run_id, poll_s)


def _wait_while_paused(run_id: UUID, poll_s: float) -> None:
    while True:
        time.sleep(poll_s)
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run_id).state
        except httpx.HTTPError as error:
            _raise_unless_away(error)
            continue
        if state is None or not state.is_paused():
            return


def _raise_unless_away(error: httpx.HTTPError) -> None:
    """Raise ``error`` where a server that is there refused: it would do so again."""
    if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
        raise error


@contextmanager
def _answer_in_time(run_id: UUID, timeout_s: float) -> Iterator[Flag]:
    """End a pause within it after ``timeout_s`` seconds; the flag says whether that was done."""
    answered, over = Flag(), Flag()
    reason = f"nobody answered within {timeout_s / 60:g} minutes"

    def answer() -> None:
        if answered.wait(timeout_s):
            return
        while not over.is_set() and not answered.wait(1):
            try:
                over.set()
                resume_flow_run(run_id, run_input={"decision": "hold", "reason": reason})
            except NotPausedError:
                over.clear()  # somebody did at the last moment
                return
            except Exception:  # noqa: BLE001 - the server may be away for a while: once more
                over.clear()

    thread = Thread(target=answer, name="approval-timeout", daemon=True)
    thread.start()
    try:
        yield over
    finally:
        answered.set()
        thread.join()
