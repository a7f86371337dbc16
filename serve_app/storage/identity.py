"""What makes two files in a store the same file: their place, size and version."""

import hashlib
from collections.abc import Mapping
from typing import Any

import fsspec

from serve_app.storage.os_errors import as_os_errors

# The keys under which file systems report what changes with a file's content, the most reliable first (s3, gcs,
# azure, local, memory).
VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url`, and the path within it. Its listings are not cached: a cached one hides changes."""
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return filesystem, path


def identity(place: str, size: int, version: object) -> str:
    """16 hex digits. A file overwritten under the same name is another adapter."""
    return hashlib.sha256(f"{place}\0{size}\0{version}".encode()).hexdigest()[:16]


def fingerprint(url: str) -> str:
    """The identity of the file at `url` in a file system.

    Raises FileNotFoundError, and other OSErrors of its store.
    """
    with as_os_errors():
        filesystem, path = open_store(url)
        return listed_identity(path, filesystem.info(path))


def listed_identity(path: str, info: Mapping[str, Any]) -> str:
    """The identity of a file that fsspec describes with `info`."""
    return identity(path, info["size"], next((info[key] for key in VERSION_KEYS if info.get(key)), ""))
