"""Adapters on the node's own disk: what lies elsewhere is fetched once a node, however many ask."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from serve_app.storage.fetch import DISK_FULL

# Goes on with one file from the bytes that are there to its end, or begins anew if its source has changed.
Fetch = Callable[[BinaryIO], None]
# Raises if a whole file is not what it should be.
Check = Callable[[BinaryIO], None]


class DiskCache:
    """Files by adapter id, least recently used given up first. Any number of threads and processes share one.

    A file that is given up while somebody reads it stays readable for them: it is open, and POSIX keeps what is.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget = budget_bytes

    def read(self, adapter_id: str, fetch: Fetch, check: Check) -> bytes:
        """The file's bytes, by `fetch` if it is not here.

        A download that breaks off is resumed by the next, unless the disk is full; it appears under its name only
        once it passed `check`. Raises OSError, of the disk or of `fetch`, and whatever else `fetch` and `check` raise.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = self._kept(adapter_id)
        with _lock(kept), self._opened(kept, fetch, check) as file:
            # The time of the last use, which the next surplus goes by.
            os.utime(file.fileno())
            self._give_up_surplus(kept)
            return file.read()

    def discard(self, adapter_id: str) -> None:
        """Forget a file. Whoever reads it reads on."""
        self._kept(adapter_id).unlink(missing_ok=True)

    def _kept(self, adapter_id: str) -> Path:
        return self._folder / f"{adapter_id}.safetensors"

    @contextmanager
    def _opened(self, kept: Path, fetch: Fetch, check: Check) -> Iterator[BinaryIO]:
        """The whole file. Its name is asked for once: other processes may give it up at any time."""
        try:
            file: BinaryIO = kept.open("rb")
        except FileNotFoundError:
            file = _bring(kept, fetch, check)
        with file:
            yield file

    def _give_up_surplus(self, newest: Path) -> None:
        """Down to the budget; the newest stays, even if it is larger than the budget alone."""
        found = []
        for file in (*self._folder.glob("*.safetensors"), *self._folder.glob("*.part")):
            try:
                found.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:
                # Another process was faster.
                continue
        surplus = sum(size for _, size, _ in found) - self._budget
        for _, size, file in sorted(found):
            if surplus <= 0:
                break
            if file != newest and _give_up(file):
                surplus -= size


def _bring(kept: Path, fetch: Fetch, check: Check) -> BinaryIO:
    """The file, fetched, checked and put in place; open, at its start."""
    part = _part(kept)
    with ExitStack() as otherwise:
        file = otherwise.enter_context(part.open("a+b"))
        try:
            fetch(file)
        except OSError as error:
            if error.errno in DISK_FULL:
                part.unlink()
            raise
        otherwise.callback(part.unlink)
        file.seek(0)
        check(file)
        part.replace(kept)
        file.seek(0)
        otherwise.pop_all()
        return file


def _give_up(file: Path) -> bool:
    """Delete a file, or the beginning of one unless somebody goes on with it.

    Lock files stay: whoever waits on a lock that is deleted does not exclude the next one.
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


def _part(kept: Path) -> Path:
    return kept.with_suffix(".part")


def _lock(kept: Path, timeout: float = -1) -> FileLock:
    return FileLock(f"{kept}.lock", timeout=timeout)
