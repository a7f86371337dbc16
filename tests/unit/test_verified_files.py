"""The content of an adapter that was named by URL, and its digest: the same for everybody, or a clear error."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.adapters.verified_files import VerifiedFiles
from serve_app.config import FetchConfig, ModelConfig
from serve_app.errors import LoraChanged, LoraDownloadFailed
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.identity import fingerprint, identity
from serve_app.tasks import AdapterUse
from tests.loraserver import LoraServer, lora_server
from tests.unit.conftest import safetensors_bytes

FILE = safetensors_bytes({"x.lora_A.weight": (64, 64)})
OPEN = {"allow_private_addresses": True, "timeout_s": 0.3, "lora_timeout_s": 5}


@pytest.fixture
def server() -> Iterator[LoraServer]:
    with lora_server(FILE) as server:
        yield server


@pytest.fixture
def node(tmp_path) -> Callable[..., VerifiedFiles]:
    """The reader of a node, by its name; all nodes share one artifact storage."""

    def node(name: str = "one", **limits: object) -> VerifiedFiles:
        config = ModelConfig(adapter_disk_folder=str(tmp_path / name))
        return VerifiedFiles(config, FetchConfig.model_validate(OPEN | limits), Artifacts(str(tmp_path / "artifacts")))

    return node


def admitted(server: LoraServer) -> AdapterUse:
    """The file as an ingress admits it now."""
    version = server.etag or server.last_modified
    return AdapterUse(identity(server.url, len(server.content), version), "a", server.url, 1.0, None, version)


def test_file_is_fetched_once_by_all_processes_of_a_node(server, node):
    digests = []
    threads = [threading.Thread(target=lambda: digests.append(node().read(admitted(server)).sha256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [hashlib.sha256(FILE).hexdigest()] * 4
    assert server.ranges == [None]


@pytest.mark.parametrize(
    "versions", [{"etag": '"1"'}, {"etag": None, "last_modified": "Sat, 21 Nov 2026 09:00:00 GMT"}]
)
def test_connection_that_breaks_off_is_followed_by_another(server, node, versions):
    vars(server).update(versions, breaks_off_after=8192, times_broken_off=1)
    assert node().read(admitted(server)).data == FILE
    assert server.ranges == [None, "bytes=8191-"]


@pytest.fixture
def broken_off(server, node) -> AdapterUse:
    """An adapter of which this node has the beginning."""
    vars(server).update(breaks_off_after=8192, times_broken_off=2, knows_ranges=False)
    with pytest.raises(LoraDownloadFailed, match="broke the connection off"):
        node().read(admitted(server))
    server.knows_ranges = True
    return admitted(server)


def test_download_is_resumed_by_the_next_edit(server, node, broken_off):
    assert node().read(broken_off).data == FILE
    assert server.ranges[-1] == "bytes=8191-"


@pytest.mark.parametrize("says_version_of_parts", [True, False])
def test_beginning_of_one_version_is_not_the_beginning_of_another(server, node, broken_off, says_version_of_parts):
    server.says_version_of_parts = says_version_of_parts
    server.etag, server.content = '"2"', FILE[:-1] + b"x"
    with pytest.raises(LoraChanged, match="was changed after"):
        node().read(broken_off)
    assert node().read(admitted(server)).data == server.content


@pytest.mark.parametrize(
    ("day", "error", "message"),
    [
        ({"status": 403}, LoraDownloadFailed, "answered 403"),
        ({"status": 500}, LoraDownloadFailed, "answered 500"),
        ({"status": 404}, LoraChanged, "was deleted"),
        ({"silent_after": 0}, LoraDownloadFailed, r"sent nothing for 0\.3 s"),
        ({"breaks_off_after": 0}, LoraDownloadFailed, "broke the connection off"),
        ({"etag": '"2"'}, LoraChanged, "was changed"),
        ({"content": FILE + b"x"}, LoraChanged, "was changed"),
        ({"says_length": False}, LoraDownloadFailed, "no longer says how long"),
    ],
)
def test_bad_day_is_a_clear_error_and_passes(server, node, day, error, message):
    use, good = admitted(server), {name: getattr(server, name) for name in day}
    vars(server).update(day)
    with pytest.raises(error, match=message):
        node().read(use)
    server.end.set()
    vars(server).update(good)
    assert node().read(use).data == FILE


def test_endlessly_slow_download_is_stopped(server, node):
    server.breaks_off_after, server.pause_s = 4096, 0.1
    with pytest.raises(LoraDownloadFailed, match=r"longer than 0\.2 s"):
        node(lora_timeout_s=0.2).read(admitted(server))


def test_editors_obey_the_address_rules_too(server, node):
    with pytest.raises(LoraDownloadFailed, match="not a public one"):
        node(allow_private_addresses=False).read(admitted(server))
    assert server.requests == []


def test_content_is_what_the_first_reader_found_on_every_node_and_after_restarts(server, node, tmp_path):
    use = admitted(server)
    assert node("one").read(use).sha256 == hashlib.sha256(FILE).hexdigest()
    # Another file of the same size under the same ETag: no server should do that, and some do.
    server.content = FILE[:-1] + b"x"
    for name in ("two", "three"):
        with pytest.raises(LoraChanged, match="other content than it had when it was first used"):
            node(name).read(use)
    assert node("one").read(use).data == FILE
    server.content = FILE
    assert node("two").read(use).data == FILE


def test_copy_that_was_damaged_on_disk_is_downloaded_again(server, node, tmp_path):
    use = admitted(server)
    node().read(use)
    [kept] = (tmp_path / "one").glob("*.safetensors")
    kept.write_bytes(FILE[:-1] + b"x")
    assert node().read(use).data == FILE
    assert server.ranges == [None, None]


def test_local_file_with_other_content_of_the_same_size_and_time_is_refused(node, tmp_path):
    file = Path(tmp_path / "a.safetensors")
    file.write_bytes(FILE)
    use, time = AdapterUse(fingerprint(str(file)), "a", str(file), 1.0), file.stat().st_mtime_ns
    node().read(use)
    file.write_bytes(FILE[:-1] + b"x")
    os.utime(file, ns=(time, time))
    assert fingerprint(str(file)) == use.id
    with pytest.raises(LoraChanged, match="other content"):
        node().read(use)


@pytest.mark.parametrize("url", ["{tmp_path}", "memory://pins"])
def test_of_many_who_write_the_same_new_artifact_one_does(tmp_path, url):
    artifacts, won = Artifacts(url.format(tmp_path=tmp_path)), []
    start = threading.Barrier(16)

    def write(value: bytes) -> None:
        start.wait()
        if artifacts.put_new("a/key", value):
            won.append(value)

    threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert artifacts.get("a/key") == won[0]
