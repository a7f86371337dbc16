"""Artifact storage: control images by content, results by request. A folder, or any fsspec URL."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Artifacts:
    """Blocking calls: an event loop uses them through `asyncio.to_thread`.

    What is readable is whole: a file appears under its name only once all its bytes are there.
    """

    def __init__(self, url: str) -> None:
        self._filesystem, self._root = fsspec.url_to_fs(url)

    def url(self, key: str) -> str:
        """Where the artifact is: a real path if it is a local file, else its URL."""
        path = f"{self._root}/{key}"
        return path if isinstance(self._filesystem, LocalFileSystem) else str(self._filesystem.unstrip_protocol(path))

    def key_of(self, url: str) -> str | None:
        """The key of what `url` says is here, None if it is elsewhere."""
        root = self.url("")
        return url.removeprefix(root) if url.startswith(root) else None

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`, replacing what is there."""
        with self._whole(key) as part:
            self._filesystem.pipe_file(part, data)

    @contextmanager
    def _whole(self, key: str) -> Iterator[str]:
        """Where to write what shall appear under `key` in one piece, whoever else writes there too."""
        path = f"{self._root}/{key}"
        if not isinstance(self._filesystem, LocalFileSystem):
            # An object appears at the end of its upload.
            yield path
            return
        with self._part(path) as part:
            yield part
            Path(part).replace(path)

    @contextmanager
    def _part(self, path: str) -> Iterator[str]:
        """A place of one's own beside a local file's."""
        self._filesystem.makedirs(self._filesystem._parent(path), exist_ok=True)
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            yield part
        finally:
            Path(part).unlink(missing_ok=True)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write `data` under `key` unless something is there; whether it was written. Of several at once one does it.

        A folder has to be on a file system with hard links.
        """
        path = f"{self._root}/{key}"
        try:
            if isinstance(self._filesystem, LocalFileSystem):
                with self._part(path) as part:
                    Path(part).write_bytes(data)
                    Path(path).hardlink_to(part)
            else:
                self._filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_file(self, key: str, source: Path) -> None:
        """Copy a local file to `key`, unless something is there."""
        if not self.exists(key):
            with self._whole(key) as part:
                self._filesystem.put_file(str(source), part)

    def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises FileNotFoundError."""
        data: bytes = self._filesystem.cat_file(f"{self._root}/{key}")
        return data

    def exists(self, key: str) -> bool:
        return bool(self._filesystem.exists(f"{self._root}/{key}"))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete what is there under these keys."""
        for key in keys:
            with suppress(FileNotFoundError):
                self._filesystem.rm_file(f"{self._root}/{key}")

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value).encode())

    def get_json(self, key: str) -> Any:
        """The value under `key`, None if there is none."""
        try:
            return json.loads(self.get(key))
        except FileNotFoundError:
            return None
