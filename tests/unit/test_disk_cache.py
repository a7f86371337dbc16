"""Remote adapters on the node's disk: fetched once, whole, within a budget, whatever breaks."""

import errno
import os
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.adapters import disk
from serve_app.adapters.disk import DiskCache
from serve_app.errors import LoraInvalidFile
from tests.unit.conftest import safetensors_bytes


class CountingStore(MemoryFileSystem):
    """A remote store: counts what is read, and breaks off when it is told."""

    protocol = "counting"
    store: dict = {}  # noqa: RUF012  # fsspec's own way to share files between instances
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = True
    reads: list[tuple[str, int]] = []  # noqa: RUF012
    fail_at: int | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("counting://").strip("/")

    def cat_file(self, path, start=None, end=None, **kwargs):
        if CountingStore.fail_at is not None and (start or 0) >= CountingStore.fail_at:
            raise OSError("the store broke off")
        CountingStore.reads.append((path, start or 0))
        return super().cat_file(path, start=start, end=end, **kwargs)


fsspec.register_implementation("counting", CountingStore, clobber=True)


@pytest.fixture
def store():
    CountingStore.reads.clear()
    CountingStore.fail_at = None
    return fsspec.filesystem("counting")


@pytest.fixture
def put(store):
    def put(data: bytes | None = None) -> tuple[str, bytes]:
        path = f"/{uuid.uuid4().hex}.safetensors"
        data = safetensors_bytes({"x.lora_A.weight": (64, 64)}) if data is None else data
        store.pipe_file(path, data)
        return f"counting://{path}", data

    return put


def test_file_is_fetched_once_and_survives_a_restart(put, store, tmp_path):
    url, data = put()
    assert DiskCache(tmp_path, 10**9).read(url, "a", "a") == data
    assert DiskCache(tmp_path, 10**9).read(url, "a", "a") == data
    assert len(store.reads) == 1


def test_many_at_once_fetch_once(put, store, tmp_path):
    url, data = put()
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(DiskCache(tmp_path, 10**9).read(url, "a", "a")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [data] * 8
    assert len(store.reads) == 1


def test_download_that_broke_off_is_resumed(put, store, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "CHUNK_BYTES", 4096)
    url, data = put()
    CountingStore.fail_at = 8192
    with pytest.raises(OSError, match="broke off"):
        DiskCache(tmp_path, 10**9).read(url, "a", "a")
    assert not (tmp_path / "a.safetensors").exists()
    CountingStore.fail_at = None
    store.reads.clear()
    assert DiskCache(tmp_path, 10**9).read(url, "a", "a") == data
    assert store.reads[0][1] == 8192


def test_file_that_is_no_adapter_is_not_kept(put, tmp_path):
    url, _ = put(b"<html>not here</html>")
    for _ in range(2):
        with pytest.raises(LoraInvalidFile, match="HTML"):
            DiskCache(tmp_path, 10**9).read(url, "a", "a")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_least_recently_used_is_given_up_and_the_newest_never(put, store, tmp_path):
    files = {name: put() for name in "abc"}
    size = len(files["a"][1])
    cache = DiskCache(tmp_path, 2 * size)
    for time, name in enumerate("aba"):
        cache.read(files[name][0], name, name)
        # As if a second had passed: the time of the last use is what decides.
        os.utime(tmp_path / f"{name}.safetensors", (time, time))
    cache.read(files["c"][0], "c", "c")
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c"]
    assert DiskCache(tmp_path, 1).read(files["b"][0], "b", "b") == files["b"][1]
    assert [path.stem for path in tmp_path.glob("*.safetensors")] == ["b"]


def test_full_disk_is_read_past(put, store, tmp_path, monkeypatch):
    url, data = put()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(DiskCache, "_fetch", full)
    assert DiskCache(tmp_path, 10**9).read(url, "a", "a") == data


def test_local_files_are_read_where_they_are(tmp_path):
    file = tmp_path / "here.safetensors"
    file.write_bytes(safetensors_bytes())
    assert DiskCache(tmp_path / "cache", 10**9).read(str(file), "a", "a") == file.read_bytes()
    assert not Path(tmp_path / "cache").exists()
