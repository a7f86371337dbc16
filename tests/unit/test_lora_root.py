"""Entries of the LoRA root that are not regular files, and a root whose store hangs."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.adapters import lora_root
from serve_app.adapters.local_files import NotRegular, open_regular
from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, JobsConfig, ModelConfig
from serve_app.errors import LoraChanged, LoraDownloadFailed, LoraNotFound, Overloaded, StorageFailed
from serve_app.intake.catalogue import Catalogue
from serve_app.intake.tenants import Caller
from serve_app.jobs import database
from serve_app.jobs.records import NewImage, NewRequest
from serve_app.jobs.store import JobStore
from serve_app.storage.identity import fingerprint
from serve_app.tasks import AdapterUse
from tests.unit.conftest import SHARES_AN_APPLICATION, safetensors_bytes

pytestmark = SHARES_AN_APPLICATION


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_named_pipe(path: Path) -> None:
    named_pipe(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def links_in_a_circle(path: Path) -> None:
    path.symlink_to(path.with_suffix(".other"))
    path.with_suffix(".other").symlink_to(path)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_suffix(".nothing"))


def directory(path: Path) -> None:
    path.mkdir()


def link_to_a_directory(path: Path) -> None:
    path.symlink_to(path.parent)


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    # The path of a socket must be short.
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


NO_FILES = [
    named_pipe,
    link_to_a_named_pipe,
    link_to_itself,
    links_in_a_circle,
    dangling_link,
    directory,
    link_to_a_directory,
    unix_socket,
]


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_neither_listed_nor_used(client, config, make_body, make):
    make(Path(config.lora_root) / "job/no.safetensors")
    listed = client.get("/v1/loras")
    assert (listed.status_code, [lora["path"] for lora in listed.json()["loras"]]) == (200, ["job/lora.safetensors"])
    assert client.get("/v1/loras/job/no.safetensors").status_code == 404
    answer = client.post("/v1/inference", json=make_body(loras=[{"path": "job/no.safetensors"}]))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "LORA_NOT_FOUND")


def test_link_to_a_file_under_the_root_is_listed_and_used(client, config, make_body):
    (Path(config.lora_root) / "link.safetensors").symlink_to(Path(config.lora_root) / "job/lora.safetensors")
    listed = client.get("/v1/loras").json()["loras"]
    assert [(lora["path"], lora["problem"]) for lora in listed] == [
        ("job/lora.safetensors", None),
        ("link.safetensors", None),
    ]
    assert client.post("/v1/inference", json=make_body(loras=[{"path": "link.safetensors"}])).status_code == 200


def test_local_root_that_is_gone_is_an_outage_and_not_empty(tmp_path):
    """As a bucket that cannot be reached: clients try again, and do not look for a misspelt name."""
    root = lora_root.LoraRoot(str(tmp_path / "loras"))
    for call in (root.files, root.listing, lambda: root.listing("job")):
        with pytest.raises(StorageFailed):
            call()
    with pytest.raises(LoraDownloadFailed):
        root.find("job/lora.safetensors")
    (tmp_path / "loras").mkdir()
    assert (root.files(), root.listing(), root.listing("job")) == ([], [], [])
    with pytest.raises(LoraNotFound):
        root.find("job/lora.safetensors")


@pytest.mark.parametrize("make", NO_FILES)
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(OSError):  # noqa: PT011  # which one differs by kind
        open_regular(tmp_path / "x")


def test_pipe_that_replaces_a_file_before_it_is_opened_is_no_file(tmp_path, monkeypatch):
    """As between a look at the file and its opening."""
    (tmp_path / "file").write_bytes(b"")
    named_pipe(tmp_path / "pipe")
    regular = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda path: regular)
    with pytest.raises(NotRegular):
        open_regular(tmp_path / "pipe")


def test_file_that_became_a_pipe_is_one_that_changed(tmp_path):
    """In the editor, after the request was accepted."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors_bytes())
    use = AdapterUse(fingerprint(str(file)), "a.safetensors", str(file), 1.0)
    contents = VerifiedFiles(ModelConfig(adapter_disk_folder=str(tmp_path / "disk")), FetchConfig())
    assert contents.read(use).data == file.read_bytes()
    file.unlink()
    named_pipe(file)
    with pytest.raises(LoraChanged):
        contents.read(use)


class Stuck:
    """A call that hangs until it is released, like one of an unreachable network file system."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls = 0

    def __call__(self, *args: object, **options: object) -> bool:
        self.calls += 1
        self.released.wait(30)
        return True


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.released.set()


@pytest.fixture
def root(config) -> lora_root.LoraRoot:
    return lora_root.LoraRoot(config.lora_root)


async def test_hanging_store_times_out_and_is_then_not_called(config, root, stuck, monkeypatch):
    monkeypatch.setattr(lora_root, "ROOT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(root._threads._places, "_patience_s", 0.1)
    monkeypatch.setattr(root, "files", stuck)
    catalogue = Catalogue(config, root, {})
    began = time.monotonic()
    looks = [catalogue.loras("", "", 10, Caller()) for _ in range(3 * lora_root.ROOT_THREADS)]
    outcomes = await asyncio.gather(*looks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Overloaded}
    assert (stuck.calls, time.monotonic() - began < 2) == (lora_root.ROOT_THREADS, True)
    # Threads of others are free, and those that hung serve again once the store is back.
    assert await asyncio.to_thread(lambda: 1) == 1
    stuck.released.set()
    monkeypatch.undo()
    assert [lora.path for lora in (await catalogue.loras("", "", 10, Caller())).loras] == ["job/lora.safetensors"]


async def test_transaction_does_not_wait_for_threads_that_hang_in_other_calls(database_url, make_plan, stuck):
    """Its lock would be held as long as they hang."""
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    hangs = asyncio.create_task(asyncio.to_thread(stuck))
    new = NewRequest("0" * 32, "", "m", (NewImage(make_plan(), 1.0),), 60.0, files={"a": 1})
    async with asyncio.timeout(5):
        await store.requests.create(new, lambda key: True)
        await store.retention.delete_unneeded(["b"], lambda keys: None)
    assert not hangs.done()
    stuck.released.set()
    await hangs
    await store.close()


async def test_transaction_whose_storage_hangs_releases_the_database(database_url, make_plan, stuck, monkeypatch):
    monkeypatch.setattr(database, "STORAGE_S", 0.1)
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    new = NewRequest("0" * 32, "", "m", (NewImage(make_plan(), 1.0),), 60.0, files={"a": 1})
    with pytest.raises(StorageFailed, match="does not answer"):
        await store.requests.create(new, stuck)
    async with asyncio.timeout(5):
        await store.requests.create(new, lambda key: True)
    await store.close()
