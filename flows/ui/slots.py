"""Hold a host's slot on the Prefect server: the UI shows and limits how many stages it runs.

The host's own lock (:mod:`sdpo.processes.devices`) keeps stages apart; this shows it, and limits
stages further where somebody lowers the limit `device:<host>`, or pauses it. A server that is away
for a while neither keeps a stage from starting nor ends one.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

_LEASE_S = 60.0
"""The slot of a killed process is free after so many seconds; Prefect wants 60 at least."""


def slot_name() -> str:
    """Return the name of the host's concurrency limit on the server."""
    return f"device:{socket.gethostname()}"


@contextmanager
def device_slot(devices: Sequence[str]) -> Iterator[None]:
    """Hold a slot of this host; a limit of one is made where the server has none for it yet."""
    name, logger = slot_name(), get_run_logger()
    slot = concurrency(
        name, strict=False, raise_on_lease_renewal_failure=False, lease_duration=_LEASE_S
    )
    try:
        _make_limit(name)
        slot.__enter__()
    except httpx.HTTPError as error:
        logger.warning("no slot %s, since the server does not answer: %s", name, error)
        yield
        return
    try:
        logger.info("holds %s for %s", name, ", ".join(devices))
        yield
    finally:
        try:
            slot.__exit__(None, None, None)
        except httpx.HTTPError as error:
            logger.warning("slot %s is free in %g s: %s", name, _LEASE_S, error)


def _make_limit(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=1)
                )
            except ObjectAlreadyExists:
                return  # another run did
