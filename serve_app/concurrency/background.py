"""Tasks that run beside their owner: how they begin, how they end, and waiting for them whatever happens."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task for work that runs until it is cancelled. If it fails, the log says so at once.

    Nobody awaits such a task before the end, so its error would be seen by nobody.
    """
    task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
    task.add_done_callback(_log_failure)
    return task


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and return once all are done, as `until_done` does. Their errors are not raised."""
    for task in tasks:
        task.cancel()
    await until_done(*tasks)


async def until_done(*tasks: asyncio.Future[Any]) -> None:
    """Return once all tasks are done. If the caller is cancelled meanwhile, raise CancelledError then, not before.

    `asyncio.wait` and `asyncio.gather` raise it at once, while the tasks still hold what they hold.
    """
    cancelled: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Once begun it is not cancelled with the caller: CancelledError is raised when it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await until_done(task)
        raise


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed and does not run any more", task.get_name(), exc_info=error)
