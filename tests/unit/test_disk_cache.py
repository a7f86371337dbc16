"""Adapters of a remote store on the node's disk: fetched once, whole, within a budget, whatever breaks."""

import errno
import os
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.adapters import download
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, ModelConfig
from serve_app.errors import LoraChanged, LoraInvalidFile, StorageFailed
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse
from tests.unit.conftest import safetensors_bytes


class CountingStore(MemoryFileSystem):
    """A remote store that counts the bytes read and can break off."""

    protocol = "counting"
    store: dict = {}  # noqa: RUF012  # fsspec's own way to share files between instances
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = True
    reads: list[tuple[str, int]] = []  # noqa: RUF012
    fail_at: int | None = None
    overwrite_with: bytes | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("counting://").strip("/")

    def cat_file(self, path, start=None, end=None, **kwargs):
        if CountingStore.fail_at is not None and (start or 0) >= CountingStore.fail_at:
            raise OSError("the store broke off")
        CountingStore.reads.append((path, start or 0))
        data = super().cat_file(path, start=start, end=end, **kwargs)
        if CountingStore.overwrite_with is not None:
            self.pipe_file(path, CountingStore.overwrite_with)
        return data


fsspec.register_implementation("counting", CountingStore, clobber=True)


@pytest.fixture
def store():
    CountingStore.reads.clear()
    CountingStore.fail_at = CountingStore.overwrite_with = None
    return fsspec.filesystem("counting")


@pytest.fixture
def put(store):
    def put(data: bytes | None = None) -> tuple[AdapterUse, bytes]:
        path = f"/{uuid.uuid4().hex}.safetensors"
        data = safetensors_bytes({"x.lora_A.weight": (64, 64)}) if data is None else data
        store.pipe_file(path, data)
        url = f"counting://{path}"
        return AdapterUse(fingerprint(url), path, url, 1.0), data

    return put


@pytest.fixture
def contents(tmp_path):
    """A node's reader, by its budget: each call is another process of the same node."""

    def contents(budget: int = 10**9) -> VerifiedFiles:
        config = ModelConfig(adapter_disk_folder=str(tmp_path), adapter_disk_bytes=budget)
        return VerifiedFiles(config, FetchConfig())

    return contents


def kept(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def test_file_is_fetched_once_and_survives_a_restart(put, store, contents):
    use, data = put()
    assert contents().read(use).data == data
    assert contents().read(use).data == data
    assert len(store.reads) == 1


def test_file_that_is_kept_outlives_its_store(put, store, contents):
    use, data = put()
    contents().read(use)
    store.rm(use.path)
    assert contents().read(use).data == data


def test_many_at_once_fetch_once(put, store, contents):
    use, data = put()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(contents().read(use).data)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [data] * 8
    assert len(store.reads) == 1


def test_download_that_broke_off_is_resumed(put, store, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 4096)
    use, data = put()
    CountingStore.fail_at = 8192
    with pytest.raises(StorageFailed, match="cannot be read now"):
        contents().read(use)
    assert kept(tmp_path) == []
    CountingStore.fail_at = None
    store.reads.clear()
    assert contents().read(use).data == data
    assert store.reads[0][1] == 8192


def test_file_that_is_overwritten_while_it_is_read_is_of_neither_revision(put, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 4096)
    use, data = put()
    CountingStore.overwrite_with = data[:-1] + b"x"
    with pytest.raises(LoraChanged):
        contents().read(use)
    assert kept(tmp_path) == []


def test_file_that_is_no_adapter_is_not_kept(put, contents, tmp_path):
    use, _ = put(b"<html>not here</html>")
    for _ in range(2):
        with pytest.raises(LoraInvalidFile, match="HTML"):
            contents().read(use)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_least_recently_used_file_is_evicted_and_the_newest_never(put, contents, tmp_path):
    (a, data), (b, _), (c, _) = put(), put(), put()
    node = contents(2 * len(data))
    for time, use in enumerate((a, b, a)):
        node.read(use)
        # As if a second had passed: the time of the last use is what decides.
        os.utime(tmp_path / f"{use.id}.safetensors", (time, time))
    node.read(c)
    assert kept(tmp_path) == sorted((a.id, c.id))
    contents(1).read(b)
    assert kept(tmp_path) == [b.id]


def test_partial_files_are_evicted_unless_their_download_runs(put, contents, tmp_path):
    use, data = put()
    for name in ("left", "in_work"):
        (tmp_path / f"{name}.part").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.part", (0, 0))
    with FileLock(tmp_path / "in_work.safetensors.lock"):
        contents(len(data)).read(use)
    assert [path.stem for path in tmp_path.glob("*.part")] == ["in_work"]


def test_file_that_is_evicted_while_it_is_read_is_read_to_its_end(put, contents, tmp_path):
    """Another process without room for anything gives up all that it sees, all the time."""
    use, data = put()
    done = threading.Event()

    def give_up() -> None:
        while not done.is_set():
            for path in tmp_path.glob("*.safetensors"):
                path.unlink(missing_ok=True)

    thread = threading.Thread(target=give_up)
    thread.start()
    try:
        assert all(contents().read(use).data == data for _ in range(300))
    finally:
        done.set()
        thread.join()


def test_full_disk_is_bypassed(put, contents, tmp_path):
    """/dev/full answers each write as a full disk does."""
    use, data = put()
    part = tmp_path / f"{use.id}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full, part.open("wb", buffering=0) as file:
        file.write(b"x")
    assert full.value.errno == errno.ENOSPC
    assert contents().read(use).data == data
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    # Once there is room, it is kept.
    assert contents().read(use).data == data
    assert kept(tmp_path) == [use.id]


def test_local_files_are_read_where_they_are(tmp_path):
    file = tmp_path / "here.safetensors"
    file.write_bytes(safetensors_bytes())
    use = AdapterUse(fingerprint(str(file)), "here", str(file), 1.0)
    config = ModelConfig(adapter_disk_folder=str(tmp_path / "cache"))
    assert VerifiedFiles(config, FetchConfig()).read(use).data == file.read_bytes()
    assert not Path(tmp_path / "cache").exists()
