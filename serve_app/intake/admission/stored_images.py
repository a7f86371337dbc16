"""Stored control images: uploads, and files that earlier requests sent. A request names one by its sha256."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from serve_app.errors import ControlImageInvalid
from serve_app.intake.tenants import Caller
from serve_app.jobs.records import Upload
from serve_app.jobs.store import JobStore
from serve_app.jobs.uploads import SHA256
from serve_app.models.repeat_request import STORED_IMAGE
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts

# The string of a control image that is an upload starts with this; the upload's id, which is its digest, follows. It
# means the same as `sha256:`.
UPLOAD = "upload:"


def is_stored(image: str) -> bool:
    """Whether a control image's string names a stored one, as `effective.request` of an earlier request does."""
    return image.startswith((STORED_IMAGE, UPLOAD))


def digest_in(image: str) -> str | None:
    """The digest (hex) in the string of a stored image; None if it has none."""
    digest = image.partition(":")[2].lower()
    return digest if SHA256.fullmatch(digest) else None


class StoredImages:
    """Whoever may see a request may use its control images again, until they are deleted. So it is with uploads."""

    def __init__(self, store: JobStore, artifacts: Artifacts) -> None:
        self._store = store
        self._artifacts = artifacts

    async def uploads(self, images: Iterable[str], caller: Caller) -> dict[str, Upload]:
        """The uploads among these images, by the image's string. They were checked when they came."""
        digests = {image: digest for image in images if is_stored(image) and (digest := digest_in(image))}
        if not digests:
            return {}
        found = await self._store.uploads.find(sorted(set(digests.values())), _whose(caller))
        return {image: found[digest] for image, digest in digests.items() if digest in found}

    async def check(self, image: str, upload: Upload) -> None:
        """Raise ControlImageInvalid, whose message is only the reason, if the upload's file has been lost."""
        if not await asyncio.to_thread(self._artifacts.exists, upload.key):
            raise _unknown(image)

    async def get(self, image: str, caller: Caller) -> bytes:
        """The file that a request sent. Raises ControlImageInvalid, whose message is only the reason."""
        digest = digest_in(image)
        if digest is None:
            raise ControlImageInvalid(f"a stored control image is named by {_prefix(image)} and 64 hex digits")
        key = artifact_keys.control_image(digest)
        # The answer is the same for another tenant's image, for one that nobody sent, and for one that was deleted.
        with suppress(FileNotFoundError):
            if await self._store.requests.need(key, _whose(caller)):
                return await asyncio.to_thread(self._artifacts.get, key)
        raise _unknown(image)


def _whose(caller: Caller) -> str | None:
    """The tenant whose images a caller may use; None: all tenants'."""
    return None if caller.is_operator else caller.tenant


def _prefix(image: str) -> str:
    return UPLOAD if image.startswith(UPLOAD) else STORED_IMAGE


def _unknown(image: str) -> ControlImageInvalid:
    if image.startswith(UPLOAD):
        return ControlImageInvalid(f"there is no upload {image!r}, or it has expired; upload the image again")
    return ControlImageInvalid(f"no stored request has the control image {image}; send the image itself")
