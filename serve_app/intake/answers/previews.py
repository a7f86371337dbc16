"""Step previews for clients: who watches a request makes its editors store them, and any ingress can read them."""

import asyncio
import logging
import time

from serve_app.errors import StorageFailed
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreview, StepPreviewStorage

logger = logging.getLogger(__name__)

# How often one ingress changes the marker of a request at most (s). Editors stop 10 s after the last change.
MARK_S = 3.0


class Previews:
    """The step previews of requests that have not ended. To be used in one event loop."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._storage = StepPreviewStorage(artifacts)
        # When this process changed the marker of a request (s, monotonic).
        self._marked_at: dict[str, float] = {}

    async def watch(self, request_id: str) -> None:
        """Have the editors of a request make previews for the next 10 s. Call it as often as is convenient.

        Does not raise: without storage there are no previews, and the request goes on.
        """
        now = time.monotonic()
        self._marked_at = {id_: at for id_, at in self._marked_at.items() if now - at < MARK_S}
        if request_id in self._marked_at:
            return
        self._marked_at[request_id] = now
        try:
            await asyncio.to_thread(self._storage.change_marker, request_id)
        except StorageFailed:
            logger.exception("request %s cannot be marked as watched; it has no step previews for now", request_id)

    async def latest(self, request_id: str, index: int) -> StepPreview | None:
        """The newest preview of an image: its step and its JPEG. None before the first one.

        Raises StorageFailed.
        """
        return await asyncio.to_thread(self._storage.get, request_id, index)
