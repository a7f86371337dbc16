"""Artifact storage: what is old is found, what is deleted is gone, wherever it is."""

import pytest

from serve_app.artifacts import Artifacts
from serve_app.errors import StorageFailed


@pytest.mark.parametrize("url", ["{folder}", "file://{folder}", "memory://{folder}"])
def test_artifacts_are_found_by_age_and_deleted(tmp_path, url):
    artifacts = Artifacts(url.format(folder=tmp_path / "a"))
    for key in ("controls/a", "controls/b", "results/1/0.json", "results/1/1.json", "results/10/0.json"):
        artifacts.put(key, b"x")
    assert artifacts.older_than("controls", 60.0) == []
    assert sorted(artifacts.older_than("controls", -60.0)) == ["controls/a", "controls/b"]
    assert artifacts.older_than("nothing", -60.0) == []
    artifacts.delete(["controls/gone", "controls/a", "controls/never"])
    artifacts.delete([])
    artifacts.delete_folder("results/1")
    artifacts.delete_folder("results/1")
    assert sorted(artifacts.older_than("", -60.0)) == ["controls/b", "results/10/0.json"]


def test_storage_that_refuses_is_said(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    # A file where a folder should be.
    artifacts.put("controls", b"x")
    with pytest.raises(StorageFailed, match="cannot be deleted"):
        artifacts.delete(["controls/a"])
