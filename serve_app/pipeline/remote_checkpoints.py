"""Checkpoints in a store, for example a bucket: downloaded to the node's disk, once for all its editors."""

import base64
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from serve_app.concurrency.watched_threads import Call, Stalled, Watch, WatchedThreads
from serve_app.errors import CheckpointRefused
from serve_app.models.checkpoint_store import DIGESTS, Listing, RemoteFile, copy_of, list_files, newest_copy
from serve_app.pipeline.weight_files import stored_tensors
from serve_app.storage.identity import open_store
from serve_app.storage.os_errors import as_os_errors
from serve_app.telemetry.start_progress import Progress

# Threads that download at a time, and what each asks for at once (bytes).
THREADS = 16
CHUNK_BYTES = 16 * 2**20
# The longest time that a store may take for one chunk or a listing (s).
PATIENCE_S = 120.0
# A checkpoint that was used within this time (s) is not evicted: an editor may still read it.
IN_USE_S = 3600.0
GIB = 2**30

logger = logging.getLogger(__name__)


class RemoteCheckpoints:
    """Checkpoints by their content in a folder of this node. Safe for many processes at once.

    A checkpoint gets its name when it is complete and checked, so one that broke off is never used. The next attempt
    keeps its complete files.
    """

    def __init__(self, folder: Path, budget_bytes: int, patience_s: float | None = None) -> None:
        self._folder = folder
        self._budget = budget_bytes
        self._patience_s = patience_s or PATIENCE_S

    def fetch(self, url: str) -> Path:
        """The folder of the checkpoint at `url`, downloaded if necessary. Blocks. Raises CheckpointRefused.

        While its store is away, it is the copy that was used last.
        """
        try:
            filesystem, root = open_store(url)
            if isinstance(filesystem, LocalFileSystem):
                return Path(root)
            try:
                files = self._list(filesystem, root, url)
            except (OSError, Stalled) as error:
                if not isinstance(error, FileNotFoundError) and (copy := self._copy(url, error)) is not None:
                    return copy
                raise
            return self._folder_of(filesystem, root, url, files)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointRefused(f"the checkpoint at {url} cannot be downloaded: {error}") from error
        except Stalled as error:
            raise CheckpointRefused(f"{error} has stalled: its store sends nothing any more") from error

    def _folder_of(self, filesystem: fsspec.AbstractFileSystem, root: str, url: str, files: Listing) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        target = copy_of(self._folder, url, files)
        with _lock(target):
            if not target.is_dir():
                self._make_room(sum(file.size for file in files.values()), target, url)
                part = _partial(target)
                self._download(filesystem, url, files, part)
                if self._list(filesystem, root, url) != files:
                    raise CheckpointRefused(f"the checkpoint at {url} was changed while it was downloaded: start again")
                part.rename(target)
            # Eviction goes by this time of the last use.
            os.utime(target)
        return target

    def _list(self, filesystem: fsspec.AbstractFileSystem, root: str, url: str) -> Listing:
        listed: list[Listing] = []

        def find(watch: Watch) -> None:
            watch.before(f"listing {url}")
            listed.append(list_files(filesystem, root, url))

        with WatchedThreads([find], 1, self._patience_s) as threads:
            threads.finish()
        return listed[0]

    def _copy(self, url: str, error: Exception) -> Path | None:
        """A complete copy of the checkpoint at `url`, to be used although its store is away; None if there is none."""
        copy = newest_copy(self._folder, url)
        if copy is None:
            return None
        with _lock(copy):
            if not copy.is_dir():
                return None
            os.utime(copy)
        logger.warning("%s cannot be listed (%s); using the copy of it that was used last, %s", url, error, copy)
        return copy

    def _download(self, filesystem: fsspec.AbstractFileSystem, url: str, files: Listing, part: Path) -> None:
        part.mkdir(exist_ok=True)
        for incomplete in part.rglob("*.part"):
            # A thread of an attempt that failed may complete its file meanwhile.
            incomplete.unlink(missing_ok=True)
        progress = Progress(f"download of {url}", sum(file.size for file in files.values()), "downloading")
        # The digests first: the others are checked with them.
        for names in ([DIGESTS], [name for name in files if name != DIGESTS]):
            missing = []
            for name in names:
                if name in files and (part / name).is_file():
                    progress.add(files[name].size)
                elif name in files:
                    missing.append(Download(filesystem, url, files[name], part, progress))
            calls = (call for download in missing for call in download.calls())
            with WatchedThreads(calls, THREADS, self._patience_s) as threads:
                threads.finish()

    def _make_room(self, size: int, target: Path, url: str) -> None:
        """Evict the checkpoints that were used the longest time ago. Raises CheckpointRefused if there is no room."""
        if size > self._budget:
            raise CheckpointRefused(
                f"the checkpoint at {url} has {size / GIB:.1f} GiB, and checkpoint_disk_bytes allows "
                f"{self._budget / GIB:.1f} GiB"
            )
        others = {}
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder not in (target, _partial(target)):
                others[folder] = _bytes_in(folder)
        surplus = sum(others.values()) + size - self._budget
        for folder in sorted(others, key=lambda each: each.stat().st_mtime):
            if surplus > 0 and time.time() - folder.stat().st_mtime > IN_USE_S and _evict(folder):
                surplus -= others[folder]
        if surplus > 0:
            logger.warning(
                "with the checkpoint at %s (%.1f GiB), %s has %.1f GiB, and checkpoint_disk_bytes allows %.1f GiB: the "
                "others were used within the last hour, so none of them is deleted",
                url,
                size / GIB,
                self._folder,
                (self._budget + surplus) / GIB,
                self._budget / GIB,
            )
        free = shutil.disk_usage(self._folder).free
        if free < size - _bytes_in(_partial(target)):
            raise CheckpointRefused(
                f"the checkpoint at {url} has {size / GIB:.1f} GiB, and the disk of {self._folder} has "
                f"{free / GIB:.1f} GiB left"
            )


def _bytes_in(folder: Path) -> int:
    """The size of all files below a folder. Others may rename and delete them meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


class Download:
    """The download of one file. It gets its name when it is complete and checked."""

    def __init__(
        self, filesystem: fsspec.AbstractFileSystem, url: str, file: RemoteFile, folder: Path, progress: Progress
    ) -> None:
        self._filesystem = filesystem
        self._file = file
        self._folder = folder
        self._progress = progress
        self._what = f"downloading {url.rstrip('/')}/{file.name}"
        self._target = folder / file.name
        # Another name in each attempt: a thread of one that failed may still write.
        self._part = self._target.with_name(f"{self._target.name}.{uuid.uuid4().hex}.part")
        self._left = max(1, -(-file.size // CHUNK_BYTES))
        self._lock = threading.Lock()

    def calls(self) -> Iterator[Call]:
        """One call per chunk."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("wb") as opened:
            opened.truncate(self._file.size)
        for begin in range(0, max(1, self._file.size), CHUNK_BYTES):
            yield partial(self._chunk, begin, min(begin + CHUNK_BYTES, self._file.size))

    def _chunk(self, begin: int, end: int, watch: Watch) -> None:
        data = b""
        if end > begin:
            watch.before(self._what)
            with as_os_errors():
                data = self._filesystem.cat_file(self._file.path, start=begin, end=end)
            watch.done()
        if len(data) != end - begin:
            raise CheckpointRefused(f"{self._what}: the store sent {len(data)} bytes instead of {end - begin}")
        with self._part.open("r+b") as opened:
            opened.seek(begin)
            opened.write(data)
        self._progress.add(len(data))
        with self._lock:
            self._left -= 1
            complete = self._left == 0
        if complete:
            self._finish()

    def _finish(self) -> None:
        with self._part.open("rb") as opened:
            os.fsync(opened.fileno())
            if self._file.md5 is not None:
                found = base64.b64encode(hashlib.file_digest(opened, "md5").digest()).decode()
                self._refuse_other("MD5", found, self._file.md5)
            expected = digests(self._folder / DIGESTS).get(self._file.name)
            if expected is not None:
                opened.seek(0)
                self._refuse_other("SHA-256", hashlib.file_digest(opened, "sha256").hexdigest(), expected)
        if self._target.suffix == ".safetensors":
            # Checks that header and length fit.
            stored_tensors(self._part)
        self._part.rename(self._target)

    def _refuse_other(self, kind: str, found: str, expected: str) -> None:
        if found != expected:
            self._part.unlink()
            raise CheckpointRefused(f"{self._what}: the store sent other bytes; {kind} {found} instead of {expected}")


def digests(file: Path) -> dict[str, str]:
    """The SHA-256 (hex) of each file that a file of digests lists; none if there is no such file."""
    if not file.is_file():
        return {}
    lines = (line.split(None, 1) for line in file.read_text().splitlines() if line.strip())
    return {line[1].lstrip("*").removeprefix("./").strip(): line[0].lower() for line in lines if len(line) == 2}


def _evict(folder: Path) -> bool:
    """Delete a checkpoint unless its download is running. Returns whether it was deleted."""
    try:
        with _lock(folder.with_suffix(""), timeout=0):
            logger.info("the checkpoint in %s is evicted", folder)
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    return True


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _lock(target: Path, timeout: float = -1) -> FileLock:
    return FileLock(f"{target}.lock", timeout=timeout)
