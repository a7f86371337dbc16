"""Adapter files on the node's own disk: a remote file is downloaded once per node, for all replicas on it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from serve_app.storage.fetch import DISK_FULL

# Appends the rest of one file to the bytes that are present, or starts again if its source has changed.
Download = Callable[[BinaryIO], None]
# Raises unless a complete file is valid.
Check = Callable[[BinaryIO], None]


class DiskCache:
    """Files by adapter id; the least recently used are evicted first. Safe for many threads and processes at once.

    A file that is evicted while somebody reads it stays readable for them, as POSIX keeps open files.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget = budget_bytes

    def read(self, adapter_id: str, download: Download, check: Check) -> bytes:
        """The file's bytes; a file that is not in the cache is downloaded first.

        The next call resumes a download that broke off, unless the disk is full. A file gets its name only after it
        passed `check`. Raises OSError, of the disk or of `download`, and what else `download` and `check` raise.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(adapter_id)
        with _lock(path), self._opened(path, download, check) as file:
            # Eviction goes by this time of the last use.
            os.utime(file.fileno())
            self._evict_surplus(path)
            return file.read()

    def discard(self, adapter_id: str) -> None:
        """Delete a file. Readers that have it open can continue."""
        self._path(adapter_id).unlink(missing_ok=True)

    def _path(self, adapter_id: str) -> Path:
        return self._folder / f"{adapter_id}.safetensors"

    @contextmanager
    def _opened(self, path: Path, download: Download, check: Check) -> Iterator[BinaryIO]:
        """The complete file. It is opened by name only once: other processes may evict it at any time."""
        try:
            file: BinaryIO = path.open("rb")
        except FileNotFoundError:
            file = _download_and_check(path, download, check)
        with file:
            yield file

    def _evict_surplus(self, newest: Path) -> None:
        """Evict files down to the budget; `newest` stays even if it alone is larger."""
        found = []
        for file in (*self._folder.glob("*.safetensors"), *self._folder.glob("*.part")):
            try:
                found.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:
                # Another process has evicted it.
                continue
        surplus = sum(size for _, size, _ in found) - self._budget
        for _, size, file in sorted(found):
            if surplus <= 0:
                break
            if file != newest and _evict(file):
                surplus -= size


def _download_and_check(path: Path, download: Download, check: Check) -> BinaryIO:
    """The file, downloaded, checked and moved to `path`; open, at its start."""
    part = _partial(path)
    with ExitStack() as on_failure:
        file = on_failure.enter_context(part.open("a+b"))
        try:
            download(file)
        except OSError as error:
            if error.errno in DISK_FULL:
                part.unlink()
            raise
        on_failure.callback(part.unlink)
        file.seek(0)
        check(file)
        part.replace(path)
        file.seek(0)
        on_failure.pop_all()
        return file


def _evict(file: Path) -> bool:
    """Delete a complete file, or a partial one unless its download is running. Returns whether it was deleted.

    Lock files stay: two processes would not exclude each other if one waited on a lock file that is deleted.
    """
    if file.suffix != ".part":
        file.unlink(missing_ok=True)
        return True
    try:
        with _lock(file.with_suffix(".safetensors"), timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _partial(path: Path) -> Path:
    return path.with_suffix(".part")


def _lock(path: Path, timeout: float = -1) -> FileLock:
    return FileLock(f"{path}.lock", timeout=timeout)
