"""Adapters on the node's own disk: what lies in a remote store is fetched once a node, however many ask."""

import errno
import logging
import os
from pathlib import Path

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from serve_app.adapters.header import read_header

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 * 2**20


class DiskCache:
    """Files by adapter id, least recently used given up first. Any number of threads and processes share one.

    A file that is given up while somebody reads it stays readable for them: POSIX keeps it until it is closed.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget = budget_bytes

    def read(self, url: str, adapter_id: str, name: str) -> bytes:
        """The file's bytes, through the cache if it is remote.

        A download that breaks off is resumed by the next; it appears under its name only once it has the
        store's length and a sound header. On a full disk the file is read past the cache. Raises OSError and
        LoraInvalidFile.
        """
        filesystem, path = fsspec.url_to_fs(url)
        if isinstance(filesystem, LocalFileSystem):
            return Path(path).read_bytes()
        kept = self._folder / f"{adapter_id}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{kept}.lock"):
                if not kept.is_file():
                    self._fetch(filesystem, path, kept, name)
                # The time of the last use, which the next surplus goes by.
                os.utime(kept)
                data = kept.read_bytes()
            self._give_up_surplus(kept)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            logger.warning("no room on disk for %s; it is read past the cache", name)
            return bytes(filesystem.cat_file(path))
        return data

    def _fetch(self, filesystem: fsspec.AbstractFileSystem, path: str, kept: Path, name: str) -> None:
        part = kept.with_suffix(".part")
        size = filesystem.size(path)
        with part.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            while (start := file.tell()) < size:
                file.write(filesystem.cat_file(path, start=start, end=min(start + CHUNK_BYTES, size)))
                file.flush()
        try:
            with part.open("rb") as file:
                read_header(file, size, name)
        except Exception:
            part.unlink()
            raise
        part.replace(kept)

    def _give_up_surplus(self, newest: Path) -> None:
        """Down to the budget; the newest stays, even if it is larger than the budget alone."""
        found = []
        for file in self._folder.glob("*.safetensors"):
            try:
                found.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:
                # Another process was faster.
                continue
        surplus = sum(size for _, size, _ in found) - self._budget
        for _, size, file in sorted(found):
            if surplus <= 0:
                break
            if file != newest:
                # Its lock file stays: whoever waits on a lock that is deleted does not exclude the next one.
                file.unlink(missing_ok=True)
                surplus -= size
