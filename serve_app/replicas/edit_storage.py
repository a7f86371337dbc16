"""What an editor reads from artifact storage and writes there: control images and finished images."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict

from serve_app.engine.protocol import Edited
from serve_app.errors import EditError, StorageFailed
from serve_app.images.encode import encode
from serve_app.images.output_formats import OUTPUT_FORMATS
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone, EditTask

logger = logging.getLogger(__name__)

# The pause between two attempts to store an image (s).
STORAGE_PAUSE_S = 2.0
# Keys of `runtime` that differ between two runs of the same edit. The image's own metadata leaves them out: the same
# request makes the same file.
OF_ONE_RUN = ("peak_memory_gib", "reused", "recompilations")


class EditStorage:
    """The files of edits in artifact storage."""

    def __init__(self, artifacts: Artifacts, patience_s: float) -> None:
        """`patience_s` is how long storage may refuse a finished image before the edit fails."""
        self._artifacts = artifacts
        self._patience_s = patience_s

    def control_image(self, sha256: str) -> bytes:
        """An encoded control image by its digest (hex). Blocks.

        Raises EditError if it was deleted, StorageFailed if it cannot be read now.
        """
        try:
            return self._artifacts.get(artifact_keys.control_image(sha256))
        except FileNotFoundError as error:
            raise EditError("its control image is no longer stored") from error

    async def store_patiently(self, task: EditTask, edited: Edited, should_stop: Callable[[], bool]) -> EditDone:
        """Store a finished image. While storage is away, try again; other edits use the device meanwhile.

        Raises StorageFailed when the patience ends or the edit should stop. The dispatcher then retries the edit.
        """
        try:
            # A store that accepts connections and never answers holds a call for minutes.
            async with asyncio.timeout(self._patience_s):
                return await self._store_until_done(task, edited, should_stop)
        except TimeoutError as error:
            raise StorageFailed("artifact storage did not take the image in time") from error

    async def _store_until_done(self, task: EditTask, edited: Edited, should_stop: Callable[[], bool]) -> EditDone:
        while True:
            try:
                return await asyncio.to_thread(self.store, task, edited)
            except StorageFailed:
                logger.exception("image %s of %s could not be stored", task.index, task.request_id)
                if should_stop():
                    raise
            await asyncio.sleep(STORAGE_PAUSE_S)

    def store(self, task: EditTask, edited: Edited) -> EditDone:
        """Encode and store the image, then its record, so that a record exists only for a complete image. Blocks."""
        started = time.perf_counter()
        plan = task.plan
        runtime = {key: value for key, value in edited.runtime.items() if key not in OF_ONE_RUN}
        output_format = OUTPUT_FORMATS[plan.output_format]
        data = encode(edited.image, output_format, {"effective": edited.effective, "runtime": runtime})
        digest = hashlib.sha256(data).hexdigest()
        key = artifact_keys.image(digest, output_format.suffix)
        self._artifacts.put(key, data)
        done = EditDone(
            key=key,
            url=self._artifacts.url(key),
            format=output_format.name,
            width=edited.image.width,
            height=edited.image.height,
            seed=plan.seed,
            size_bytes=len(data),
            sha256=digest,
            timings=edited.timings | {"save": time.perf_counter() - started},
            effective=edited.effective,
            runtime=edited.runtime,
        )
        self._artifacts.put_json(artifact_keys.record(task.request_id, task.index), asdict(done))
        return done
