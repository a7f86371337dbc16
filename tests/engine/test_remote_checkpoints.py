"""Checkpoints in a store: downloaded once, checked, and not used if the store stalls, breaks off or sends others."""

import base64
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointRefused
from serve_app.models.architecture import MINIATURE_ARCHITECTURE, architecture_of
from serve_app.pipeline import checkpoint, miniature, remote_checkpoints
from serve_app.pipeline.remote_checkpoints import RemoteCheckpoints
from tests.engine.pipelines import CPU, EDIT

URL = "unreliable://bucket/qwen"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
BUDGET = 2**30


class Unreliable(MemoryFileSystem):
    """A store in this process' memory whose answers tests change."""

    protocol = "unreliable"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    # What a test does before each read: it may raise, wait, or return other bytes.
    change = staticmethod(lambda path, data: data)
    reads: list[str] = []  # noqa: RUF012
    extra: dict[str, dict] = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("unreliable://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        data = super().cat_file(path, start=start, end=end, **kwargs)
        type(self).reads.append(path)
        return type(self).change(path, data)

    def find(self, path, **kwargs):
        found = super().find(path, **kwargs)
        return {name: info | self.extra.get(name, {}) for name, info in found.items()}


@pytest.fixture
def store(monkeypatch) -> MemoryFileSystem:
    """A store with the miniature in it."""
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(Unreliable, "store", {})
    monkeypatch.setattr(Unreliable, "pseudo_dirs", [""])
    monkeypatch.setattr(Unreliable, "reads", [])
    monkeypatch.setattr(Unreliable, "extra", {})
    monkeypatch.setattr(Unreliable, "change", staticmethod(lambda path, data: data))
    filesystem = Unreliable()
    folder = miniature.checkpoint_folder(EDIT)
    for file in folder.rglob("*.*"):
        filesystem.pipe_file(f"/bucket/qwen/{file.relative_to(folder)}", file.read_bytes())
    filesystem.pipe_file("/bucket/qwen/README.md", b"# A model")
    filesystem.pipe_file("/bucket/qwen/transformer/pictures/a.json", b"{}")
    return filesystem


def unreliable(monkeypatch, change) -> None:
    monkeypatch.setattr(Unreliable, "change", staticmethod(change))


def config(folder: Path, **options) -> ModelConfig:
    return ModelConfig(checkpoint=URL, device="cpu", checkpoint_disk_folder=str(folder), **options)


def checkpoints_in(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_dir() and each.suffix != ".part"]


def test_checkpoint_is_downloaded_once_and_loads(store, tmp_path):
    assert architecture_of(config(tmp_path)) == MINIATURE_ARCHITECTURE
    loaded = checkpoint.load(config(tmp_path), EDIT, CPU, torch.float32)
    expected = checkpoint.read(miniature.checkpoint_folder(EDIT), torch.float32)
    for part in ("text_encoder", "transformer", "vae"):
        own, theirs = (getattr(pipeline, part).state_dict() for pipeline in (loaded, expected))
        assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())
    [folder] = checkpoints_in(tmp_path)
    assert not (folder / "README.md").exists()
    assert not [*folder.rglob("pictures")]
    reads = len(Unreliable.reads)
    assert checkpoint.find(config(tmp_path), EDIT) == folder
    assert len(Unreliable.reads) == reads


def test_editors_of_a_node_download_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_checkpoints, "CHUNK_BYTES", 4096)
    with ThreadPoolExecutor(4) as editors:
        folders = [*editors.map(lambda _: RemoteCheckpoints(tmp_path, BUDGET).fetch(URL), range(4))]
    assert len(set(folders)) == 1
    source = miniature.checkpoint_folder(EDIT)
    files = [file for file in source.rglob("*.*") if file.is_file()]
    assert len(Unreliable.reads) == sum(-(-file.stat().st_size // 4096) for file in files)
    assert all((folders[0] / file.relative_to(source)).read_bytes() == file.read_bytes() for file in files)


def test_changed_checkpoint_is_downloaded_again(store, tmp_path):
    first = RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    store.pipe_file("/bucket/qwen/transformer/config.json", b'{"a": 1}')
    second = RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    assert (second / "transformer/config.json").read_bytes() == b'{"a": 1}'
    assert first != second


def test_store_that_breaks_off_leaves_nothing_to_use_and_is_resumed(store, tmp_path, monkeypatch):
    def fail(path: str, data: bytes) -> bytes:
        if path.endswith(WEIGHTS):
            raise ConnectionResetError("connection reset by peer")
        return data

    unreliable(monkeypatch, fail)
    with pytest.raises(CheckpointRefused, match=f"the checkpoint at {URL} cannot be downloaded: connection reset"):
        checkpoint.find(config(tmp_path), EDIT)
    assert checkpoints_in(tmp_path) == []
    [part] = tmp_path.glob("*.part")
    present = {str(file.relative_to(part)) for file in part.rglob("*") if file.is_file() and file.suffix != ".part"}
    Unreliable.reads.clear()
    unreliable(monkeypatch, lambda path, data: data)
    folder = checkpoint.find(config(tmp_path), EDIT)
    assert not present & {read.removeprefix("/bucket/qwen/") for read in Unreliable.reads}
    assert [*tmp_path.rglob("*.part")] == []
    assert (folder / WEIGHTS).stat().st_size == store.size(f"/bucket/qwen/{WEIGHTS}")


def test_store_that_stalls_is_an_error_that_names_the_file(store, tmp_path, monkeypatch):
    released = threading.Event()
    unreliable(monkeypatch, lambda path, data: data[: released.wait(30) if path.endswith(WEIGHTS) else None])
    with pytest.raises(CheckpointRefused, match=f"downloading {URL}/{WEIGHTS} has stalled"):
        RemoteCheckpoints(tmp_path, BUDGET, patience_s=0.2).fetch(URL)
    released.set()
    assert checkpoints_in(tmp_path) == []


def test_store_that_sends_too_little_is_refused(store, tmp_path, monkeypatch):
    unreliable(monkeypatch, lambda path, data: data[:-1] if path.endswith(WEIGHTS) else data)
    with pytest.raises(CheckpointRefused, match=rf"{WEIGHTS}: the store sent \d+ bytes instead of \d+"):
        checkpoint.find(config(tmp_path), EDIT)
    assert checkpoints_in(tmp_path) == []


def damaged(path: str, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if path.endswith(WEIGHTS) else data


def test_a_file_that_a_thread_of_an_earlier_attempt_completes_meanwhile_is_no_error(store, tmp_path, monkeypatch):
    unreliable(monkeypatch, lambda path, data: data)
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: iter([folder / f"just_renamed{pattern[1:]}"]))
    assert (checkpoint.find(config(tmp_path), EDIT) / WEIGHTS).is_file()


def test_other_bytes_than_the_digests_say_are_refused(store, tmp_path, monkeypatch):
    digest = hashlib.sha256(store.cat_file(f"/bucket/qwen/{WEIGHTS}")).hexdigest()
    store.pipe_file("/bucket/qwen/SHA256SUMS", f"{digest}  ./{WEIGHTS}\n".encode())
    unreliable(monkeypatch, damaged)
    with pytest.raises(CheckpointRefused, match=f"the store sent other bytes; SHA-256 .* instead of {digest}"):
        checkpoint.find(config(tmp_path), EDIT)
    assert checkpoints_in(tmp_path) == []
    unreliable(monkeypatch, lambda path, data: data)
    assert (checkpoint.find(config(tmp_path), EDIT) / "SHA256SUMS").is_file()


def test_other_bytes_than_the_store_lists_are_refused(store, tmp_path, monkeypatch):
    path = f"/bucket/qwen/{WEIGHTS}"
    md5 = base64.b64encode(hashlib.md5(store.cat_file(path)).digest()).decode()
    monkeypatch.setattr(Unreliable, "extra", {path: {"md5Hash": md5}})
    unreliable(monkeypatch, damaged)
    with pytest.raises(CheckpointRefused, match="the store sent other bytes; MD5"):
        checkpoint.find(config(tmp_path), EDIT)
    unreliable(monkeypatch, lambda path, data: data)
    checkpoint.find(config(tmp_path), EDIT)


def test_weights_without_a_header_are_refused(store, tmp_path, monkeypatch):
    unreliable(monkeypatch, lambda path, data: bytes(len(data)) if path.endswith(WEIGHTS) else data)
    with pytest.raises(CheckpointRefused, match=rf"{WEIGHTS}\.\w+\.part cannot be read"):
        checkpoint.find(config(tmp_path), EDIT)


def test_checkpoint_that_changes_while_it_is_downloaded_is_refused(store, tmp_path, monkeypatch):
    def change(path: str, data: bytes) -> bytes:
        if path.endswith(WEIGHTS):
            store.pipe_file("/bucket/qwen/vae/config.json", store.store["/bucket/qwen/vae/config.json"].getvalue())
        return data

    unreliable(monkeypatch, change)
    with pytest.raises(CheckpointRefused, match="was changed while it was downloaded: start again"):
        checkpoint.find(config(tmp_path), EDIT)
    assert checkpoints_in(tmp_path) == []


def away(*args: object, **kwargs: object) -> None:
    raise ConnectionRefusedError("connection refused")


def test_store_that_is_away_is_not_needed_for_a_copy(store, tmp_path, monkeypatch, caplog):
    first = RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    store.pipe_file("/bucket/qwen/vae/other.json", b"{}")
    second = RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    store.pipe_file("/bucket/other/model_index.json", b"{}")
    RemoteCheckpoints(tmp_path, BUDGET).fetch("unreliable://bucket/other")
    second.with_name(f"{second.name[:17]}0.part").mkdir()
    for name in ("find", "cat_file"):
        monkeypatch.setattr(Unreliable, name, away)
    for newest, older in ((second, first), (first, second)):
        os.utime(older, (1, 1))
        caplog.clear()
        assert RemoteCheckpoints(tmp_path, BUDGET).fetch(URL) == newest
        assert f"{URL} cannot be listed (connection refused); using the copy" in caplog.text
        os.utime(older)
        os.utime(newest, (1, 1))
    assert architecture_of(config(tmp_path)) == MINIATURE_ARCHITECTURE


def test_store_that_is_away_is_needed_without_a_copy(store, tmp_path, monkeypatch):
    for name in ("find", "cat_file"):
        monkeypatch.setattr(Unreliable, name, away)
    with pytest.raises(CheckpointRefused, match="connection refused"):
        RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    with pytest.raises(CheckpointRefused, match="connection refused"):
        architecture_of(config(tmp_path))


def test_copy_of_a_checkpoint_that_was_deleted_is_not_used(store, tmp_path):
    RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    store.store.clear()
    with pytest.raises(CheckpointRefused):
        RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    with pytest.raises(CheckpointRefused):
        architecture_of(config(tmp_path))


def test_folder_keeps_its_size(store, tmp_path, monkeypatch, caplog):
    with pytest.raises(CheckpointRefused, match=r"has 0.0 GiB, and checkpoint_disk_bytes allows 0.0 GiB"):
        checkpoint.find(config(tmp_path, checkpoint_disk_bytes=100), EDIT)
    first = RemoteCheckpoints(tmp_path, BUDGET).fetch(URL)
    size = sum(file.stat().st_size for file in first.rglob("*.*"))
    store.pipe_file("/bucket/qwen/transformer/config.json", b'{"a": 1}')
    # An editor may still read the first one.
    assert "checkpoint_disk_bytes allows" not in caplog.text
    second = RemoteCheckpoints(tmp_path, size).fetch(URL)
    assert "checkpoint_disk_bytes allows 0.0 GiB: the others were used within the last hour" in caplog.text
    assert {first, second} == set(checkpoints_in(tmp_path))
    os.utime(first, (time.time() - 7200, time.time() - 7200))
    store.pipe_file("/bucket/qwen/transformer/config.json", b'{"a": 2}')
    third = RemoteCheckpoints(tmp_path, 2 * size).fetch(URL)
    assert {second, third} == set(checkpoints_in(tmp_path))


def test_full_disk_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(CheckpointRefused, match=r"the disk of .* has 0.0 GiB left"):
        checkpoint.find(config(tmp_path), EDIT)


def test_what_is_no_checkpoint_is_refused(store, tmp_path):
    for url in ("unreliable://bucket/other", "unreliable://bucket"):
        with pytest.raises(CheckpointRefused, match=r"cannot be downloaded|has no model_index.json"):
            RemoteCheckpoints(tmp_path, BUDGET).fetch(url)
    with pytest.raises(CheckpointRefused, match="nosuchstore://a cannot be downloaded: Protocol not known"):
        RemoteCheckpoints(tmp_path, BUDGET).fetch("nosuchstore://a")
    with pytest.raises(ValidationError, match="is a URL, which has no revisions; leave it out"):
        config(tmp_path, revision="main")


def test_file_url_is_the_folder_itself(tmp_path):
    folder = miniature.checkpoint_folder(EDIT)
    assert RemoteCheckpoints(tmp_path, BUDGET).fetch(f"file://{folder}") == folder
