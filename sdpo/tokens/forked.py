"""Divide work among forked processes, which send back what they found as JSON.

The processes share what was loaded before the fork (a tokenizer), so that none loads it again.
"""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from sdpo import errors
from sdpo.errors import Fault, UserError

Message = dict[str, Any]
Send = Callable[[int, Message], None]
"""It sends a message about a unit of work; a worker does its units in rising order."""


def divide(work: Callable[[int, Send], None], *, processes: int, receive: Send) -> None:
    """Run ``work(worker, send)`` for every worker below ``processes``, and pass on what they send.

    A single worker runs in this process.

    Raises:
        UserError: a worker raised it; that of the first unit, if several did.
        Fault: a worker ended before its work was done.
    """
    if processes == 1:
        work(0, receive)
        return
    workers = [_Worker.started(work, index) for index in range(processes)]
    try:
        failure = _listen(workers, receive)
        if failure:
            raise failure
        for worker in workers:
            worker.process.join()
            if worker.process.exitcode:
                raise Fault(
                    f"a worker process ended with exit code {worker.process.exitcode} before its "
                    "work was done (killed for want of memory?)"
                )
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    unit: int = field(default=-1)
    """The worker last sent a message about this unit."""

    @classmethod
    def started(cls, work: Callable[[int, Send], None], index: int) -> "_Worker":
        context = multiprocessing.get_context("fork")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(work, index, sending), daemon=True)
        process.start()
        sending.close()
        return cls(process, receiving)


def _run(work: Callable[[int, Send], None], index: int, connection: Connection) -> None:
    unit = -1

    def send(number: int, message: Message) -> None:
        nonlocal unit
        unit = number
        connection.send_bytes(json.dumps([number, message]).encode())

    try:
        work(index, send)
    except UserError as error:
        send(unit + 1, {"error": type(error).__name__, "message": str(error)})


def _listen(workers: list[_Worker], receive: Send) -> UserError | None:
    """Pass messages on until all workers are done, or those left can only fail later."""
    failed, failure = 0, None
    by_connection = {worker.connection: worker for worker in workers}
    while by_connection:
        for connection in wait(list(by_connection)):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                worker.unit, message = json.loads(connection.recv_bytes())
            except EOFError:
                del by_connection[connection]
                continue
            if "error" not in message:
                receive(worker.unit, message)
            elif failure is None or worker.unit < failed:
                failed = worker.unit
                failure = getattr(errors, message["error"])(message["message"])
        if failure and all(worker.unit >= failed for worker in by_connection.values()):
            break
    return failure
