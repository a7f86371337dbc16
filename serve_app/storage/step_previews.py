"""Step previews in artifact storage: editors put them there while a marker says that somebody watches.

An ingress changes the marker of a request from time to time while it has watchers. An editor compares contents of the
marker, never times of two machines. Marker and previews of a request lie in one folder.
"""

import asyncio
import base64
import logging
import uuid
from typing import NamedTuple

from serve_app.errors import StorageFailed
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts

logger = logging.getLogger(__name__)


class StepPreview(NamedTuple):
    """A small image of what an edit predicts its image to be after `step` steps, encoded as JPEG."""

    step: int
    jpeg: bytes


class StepPreviewStorage:
    """The step previews of running edits. All calls block, and raise StorageFailed unless they say otherwise."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def change_marker(self, request_id: str) -> None:
        """Give the marker of a request a new content: somebody watches now."""
        self._artifacts.put(artifact_keys.watched_marker(request_id), uuid.uuid4().hex.encode())

    def marker(self, request_id: str) -> bytes | None:
        """The content of a request's marker, None if nobody has watched it."""
        try:
            return self._artifacts.get(artifact_keys.watched_marker(request_id))
        except FileNotFoundError:
            return None

    def put(self, request_id: str, index: int, preview: StepPreview) -> None:
        """Store the newest preview of an image in the place of the one before."""
        value = {"step": preview.step, "jpeg_base64": base64.b64encode(preview.jpeg).decode()}
        self._artifacts.put_json(artifact_keys.preview(request_id, index), value)

    def get(self, request_id: str, index: int) -> StepPreview | None:
        """The newest preview of an image, None if there is none."""
        stored = self._artifacts.get_json(artifact_keys.preview(request_id, index))
        return StepPreview(stored["step"], base64.b64decode(stored["jpeg_base64"])) if stored else None

    def delete(self, request_id: str, index: int) -> None:
        """Delete the preview of an image, if there is one."""
        self._artifacts.delete([artifact_keys.preview(request_id, index)])

    def delete_all(self, request_id: str) -> None:
        """Delete the previews of a request and its marker."""
        self._artifacts.delete_folder(artifact_keys.previews(request_id))

    def delete_all_soon(self, request_id: str) -> None:
        """`delete_all` in a thread of the running event loop, for a request that has ended. Does not raise or block."""
        asyncio.get_running_loop().run_in_executor(None, self._try_to_delete_all, request_id)

    def _try_to_delete_all(self, request_id: str) -> None:
        try:
            self.delete_all(request_id)
        except StorageFailed:
            logger.exception("the step previews of %s could not be deleted; the sweeper does so later", request_id)
