"""Uploads: a control image that is checked and stored once, and that requests then name `upload:<id>`."""

import asyncio
import logging

from serve_app.concurrency import background
from serve_app.config import AppConfig
from serve_app.errors import ControlImageInvalid, FilesGone
from serve_app.images.decode import ImageFacts
from serve_app.intake.admission.admission import sha256_of
from serve_app.intake.admission.new_files import MAX_TRIES, discarding_new_files
from serve_app.intake.resources import Resources
from serve_app.intake.tenants import Caller
from serve_app.jobs.records import NewUpload, Upload
from serve_app.storage import artifact_keys
from serve_app.workers.sweeper import Sweeper

logger = logging.getLogger(__name__)


class Uploads:
    """Takes uploads in, shows and deletes them. Each belongs to the tenant of its sender."""

    def __init__(self, config: AppConfig, resources: Resources, sweeper: Sweeper) -> None:
        self._config = config
        self._decoders = resources.decoders
        self._store = resources.store
        self._artifacts = resources.artifacts
        self._sweeper = sweeper

    async def store(self, data: bytes, caller: Caller) -> Upload:
        """Check an image's file like every control image, and keep it. The same file again is kept for longer.

        Raises ControlImageInvalid, UploadQuotaExceeded, Overloaded, StoreUnavailable and StorageFailed.
        """
        new = await self._checked(data, caller)
        most = caller.limits.max_upload_bytes
        # A full quota is reported before anything is stored.
        await self._store.uploads.refuse_when_full(new, most)
        async with discarding_new_files(self._artifacts, self._sweeper) as new_files:
            upload = await self._commit(new, data, most)
            new_files.clear()
        logger.info("stored the upload %s, %s bytes", upload.sha256, upload.size_bytes)
        return upload

    async def get(self, upload_id: str, caller: Caller) -> Upload:
        """Raises UploadNotFound."""
        return await self._store.uploads.get(upload_id, caller.tenant)

    async def delete(self, upload_id: str, caller: Caller) -> None:
        """Delete an upload, and its file unless something else needs it.

        Raises UploadNotFound, and StorageFailed if the file cannot be deleted, in which case the upload stays.
        """
        await self._store.retention.delete_upload(upload_id, caller.tenant, self._artifacts.delete)

    async def _checked(self, data: bytes, caller: Caller) -> NewUpload:
        max_bytes = self._config.fetch.max_bytes
        try:
            if len(data) > max_bytes:
                raise ControlImageInvalid(f"it is larger than {max_bytes} bytes")
            facts = await self._decoders.facts(data, "ignore", caller.tenant)
            turned = facts
            if facts.exif_orientation is not None:
                turned = await self._decoders.facts(data, "apply", caller.tenant)
        except ControlImageInvalid as error:
            raise ControlImageInvalid(
                f"the uploaded file cannot be used: {error.message}", {"reason": error.message}
            ) from error
        sha256 = await asyncio.to_thread(sha256_of, data)
        by_exif = {"ignore": facts, "apply": turned}
        return NewUpload(caller.tenant, sha256, artifact_keys.control_image(sha256), len(data), by_exif)

    async def _commit(self, new: NewUpload, data: bytes, most: int | None) -> Upload:
        for tries in range(1, MAX_TRIES + 1):
            await background.shielded(asyncio.to_thread(self._artifacts.put_missing, new.key, data))
            try:
                return await self._store.uploads.create(new, self._artifacts.exists, most)
            except FilesGone:
                # It was deleted because nothing needed it, just before this upload came to need it.
                if tries == MAX_TRIES:
                    raise
        raise AssertionError("unreachable")


def notes_about_upload(facts: ImageFacts) -> list[str]:
    """Sentences about what the sender of a control image may not have meant. `facts` are those with `exif: ignore`."""
    notes = []
    if facts.exif_orientation is not None:
        notes.append(
            f"the image has EXIF orientation {facts.exif_orientation}, which is ignored as the trainer does; send "
            "exif: apply in the request to have it turned"
        )
    if facts.conversions:
        notes.append(f"the image is changed when it becomes RGB: {', '.join(facts.conversions)}")
    return notes
