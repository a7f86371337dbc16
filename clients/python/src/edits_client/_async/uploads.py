"""Control images that the client stores on the service, each once."""

from __future__ import annotations

from edits_client._async.clock import Lock
from edits_client._async.transport import AsyncTransport
from edits_client.errors import UploadNotFound
from edits_client.models import Upload
from edits_client.sources import LocalImage

# From this size on (bytes), the service is asked whether it has an image before the image is sent.
ASKED_FIRST_BYTES = 256 * 1024


class AsyncUploads:
    """The images that one client has uploaded."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        # Of each file that was uploaded, by its SHA-256 (hex): its upload's id, and what makes others wait for it.
        self._uploaded: dict[str, str] = {}
        self._uploading: dict[str, Lock] = {}

    async def reference(self, source: LocalImage | str) -> str:
        """How the service names a control image; it is uploaded unless the service has it."""
        if isinstance(source, str):
            return source
        async with self._uploading.setdefault(source.sha256, Lock()):
            if source.sha256 not in self._uploaded:
                self._uploaded[source.sha256] = (await self.store(source)).id
        return f"upload:{self._uploaded[source.sha256]}"

    async def store(self, image: LocalImage) -> Upload:
        """The upload of an image, which is sent if the service does not have it. Small ones are sent at once."""
        if len(image.data) >= ASKED_FIRST_BYTES:
            try:
                return await self._transport.get(Upload, f"/v1/uploads/{image.sha256}")
            except UploadNotFound:
                pass
        return await self.send(image)

    async def send(self, image: LocalImage) -> Upload:
        """The upload of an image, which is sent whether or not the service has it."""
        return await self._transport.post(Upload, "/v1/uploads", image.data)

    def forget(self, upload_id: str) -> None:
        """Upload the file again when it is next needed: its upload was deleted."""
        self._uploaded = {sha256: id_ for sha256, id_ in self._uploaded.items() if id_ != upload_id}
