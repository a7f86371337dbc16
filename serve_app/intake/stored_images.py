"""Stored control images: files that earlier requests sent, which a request can name by their sha256."""

import asyncio
import re
from contextlib import suppress

from serve_app.errors import ControlImageInvalid
from serve_app.intake.tenants import Caller
from serve_app.jobs.requests import Requests
from serve_app.models.repeat_request import STORED_IMAGE
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts

SHA256 = re.compile("[0-9a-f]{64}")


def is_stored(image: str) -> bool:
    """Whether a control image's string names a stored one, as `effective.request` of an earlier request does."""
    return image.startswith(STORED_IMAGE)


class StoredImages:
    """Whoever may see a request may use its control images again, until they are deleted."""

    def __init__(self, requests: Requests, artifacts: Artifacts) -> None:
        self._requests = requests
        self._artifacts = artifacts

    async def get(self, image: str, caller: Caller) -> bytes:
        """The file that `sha256:<hex>` names. Raises ControlImageInvalid, whose message is only the reason."""
        sha256 = image.removeprefix(STORED_IMAGE).lower()
        if not SHA256.fullmatch(sha256):
            raise ControlImageInvalid(f"a stored control image is named by {STORED_IMAGE} and 64 hex digits")
        key = artifact_keys.control_image(sha256)
        # The answer is the same for another tenant's image, for one that nobody sent, and for one that was deleted.
        with suppress(FileNotFoundError):
            if await self._requests.need(key, None if caller.is_operator else caller.tenant):
                return await asyncio.to_thread(self._artifacts.get, key)
        raise ControlImageInvalid(
            f"no stored request has the control image {STORED_IMAGE}{sha256}; send the image itself"
        )
