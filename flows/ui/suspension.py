"""End a run that is suspended in the UI, with its state saved: Resume goes on from there.

Prefect writes the state down and tells nobody: a flow hears of it when it starts its next task,
which for a training may be hours later, and what it did meanwhile is dropped.
"""

import os
from threading import Event as Flag
from threading import Thread
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause, PrefectException

from flows.ui.guardian import RUN_ID

_EVERY_S = 3.0


class Suspension:
    """A suspension watches the state of the flow run that this process executes, while entered."""

    def __init__(self) -> None:
        self._run = os.environ.get(RUN_ID, "")
        self._asked, self._over = Flag(), Flag()

    def __enter__(self) -> "Suspension":
        if self._run:
            Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def heed(self) -> None:
        """End the flow, once, if somebody suspended it: a stage saves its state when it ends.

        Raises:
            Pause: somebody did; Prefect's engine then leaves the state as it is.
        """
        if self._asked.is_set() and not self._over.is_set():
            self._over.set()
            raise Pause("suspended in the UI")

    def _look(self) -> None:
        while not self._over.wait(_EVERY_S):
            try:
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(UUID(self._run)).state
            except (httpx.HTTPError, PrefectException, OSError):
                continue  # a server that is away suspends nothing
            # An approval is a pause too, of a process that stays.
            if state is not None and state.is_paused() and state.name == "Suspended":
                self._asked.set()
                return
