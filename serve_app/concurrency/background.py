"""Tasks that run next to the code that started them: how to start, cancel and await them without losing clean-ups."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def start(work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
    """Start a task that runs until it is cancelled. If it fails, its error is logged at once, with the task's name.

    Nobody awaits such a task before the end, so without the log nobody would see the error.
    """
    task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None))
    task.add_done_callback(_log_failure)
    return task


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and `join` them. Their errors are not raised."""
    for task in tasks:
        task.cancel()
    await join(*tasks)


async def join(*tasks: asyncio.Future[Any]) -> None:
    """Return once all tasks are done. If the caller is cancelled meanwhile, raise CancelledError then, not before.

    `asyncio.wait` and `asyncio.gather` raise it at once, while the tasks still use their resources.
    """
    cancelled: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns. If the caller is cancelled, `work` finishes first, and CancelledError is raised then.

    `asyncio.shield` alone raises it at once, while `work` still runs.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await join(task)
        raise


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed and no longer runs", task.get_name(), exc_info=error)
