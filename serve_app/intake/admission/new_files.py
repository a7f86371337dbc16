"""Files that are stored before what needs them is committed."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.storage.artifacts import Artifacts
from serve_app.telemetry.failures import log_failure
from serve_app.workers.sweeper import Sweeper

logger = logging.getLogger(__name__)

# How often a commit is tried if its files are deleted each time before it.
MAX_TRIES = 3


@asynccontextmanager
async def discarding_new_files(artifacts: Artifacts, sweeper: Sweeper) -> AsyncIterator[set[str]]:
    """Collect the keys of files that the block newly stores. Delete those files that are in the set at its end.

    A file that something else needs by then stays. The sweeper deletes what cannot be deleted now.
    """
    with artifacts.recording_new_keys() as new_files:
        try:
            yield new_files
        finally:
            try:
                await sweeper.delete_unneeded(sorted(new_files))
            except Exception:
                log_failure(logger, "could not delete the files of what was refused; the sweeper does so later")
