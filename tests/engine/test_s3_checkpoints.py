"""Checkpoints in a bucket behind S3's interface, over HTTP."""

from collections.abc import Iterator

import fsspec
import pytest
from s3fs import S3FileSystem

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointRefused
from serve_app.models.architecture import MINIATURE_ARCHITECTURE, architecture_of
from serve_app.pipeline import miniature
from serve_app.pipeline.remote_checkpoints import RemoteCheckpoints
from tests.engine.pipelines import EDIT
from tests.object_store import Fault, ObjectStore, credentials

BUDGET = 2**30


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[ObjectStore]:
    """A server with S3's interface, whose bucket `bucket_name` has the miniature."""
    with ObjectStore() as server:
        for name, value in credentials(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server.url})
        # botocore pauses for up to a second before it tries again.
        monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)
        S3FileSystem.clear_instance_cache()
        server.bucket_name = server.bucket()
        S3FileSystem().put(str(miniature.checkpoint_folder(EDIT)), f"{server.bucket_name}/qwen", recursive=True)
        yield server
        S3FileSystem.clear_instance_cache()


def test_checkpoint_in_a_bucket_is_downloaded_although_answers_break_off(bucket, tmp_path):
    url = f"s3://{bucket.bucket_name}/qwen"
    assert architecture_of(ModelConfig(checkpoint=url)) == MINIATURE_ARCHITECTURE
    cut: set[str] = set()

    def once(method: str, path: str) -> Fault | None:
        if method != "GET" or not path.endswith(".safetensors") or path in cut:
            return None
        cut.add(path)
        return Fault.CUT

    with bucket.failing(once) as happened:
        folder = RemoteCheckpoints(tmp_path / "checkpoints", BUDGET).fetch(url)
    assert happened[Fault.CUT] == 3
    source = miniature.checkpoint_folder(EDIT)
    files = [file for file in source.rglob("*.*") if file.is_file()]
    assert all((folder / file.relative_to(source)).read_bytes() == file.read_bytes() for file in files)


def test_bucket_that_does_not_exist_is_refused(bucket, tmp_path):
    with pytest.raises(CheckpointRefused, match=r"s3://nothing-here/qwen (cannot be|has no)"):
        RemoteCheckpoints(tmp_path / "checkpoints", BUDGET).fetch("s3://nothing-here/qwen")
