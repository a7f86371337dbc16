"""Which changes of a config file a running service may apply."""

import logging

import pytest
import yaml

from serve_app.commands.config_file import read_config_file
from serve_app.commands.followed_file import FollowedFile


@pytest.fixture
def change(tmp_path):
    """Write the config file, with other args or deployments than usual."""
    (tmp_path / "loras").mkdir()
    file = tmp_path / "serve_config.yaml"

    def write(deployments: object = None, **args: object) -> None:
        application = {"name": "edits", "import_path": "serve_app.app:build", "args": {"lora_root": "loras"} | args}
        if deployments is not None:
            application["deployments"] = deployments
        file.write_text(yaml.safe_dump({"applications": [application]}))

    write()
    write.path = file
    return write


@pytest.fixture
def followed(change):
    return FollowedFile(read_config_file(change.path))


def ingress(**user_config: object) -> list[dict]:
    return [{"name": "Ingress", "user_config": user_config}]


def test_changed_user_config_is_given_once(change, followed):
    assert followed.changed() is None
    for queued in (5, 6):
        change(ingress(max_queued=queued))
        assert followed.changed().raw["applications"][0]["deployments"] == ingress(max_queued=queued)
        assert followed.changed() is None
    # Back to the file without one.
    change()
    assert followed.changed() is not None


@pytest.mark.parametrize(
    ("args", "deployments", "reason"),
    [
        ({}, ingress(max_qeued=5), "user_config.max_qeued: Extra inputs are not permitted"),
        ({"require_lora": False}, ingress(max_queued=5), "restart it to apply"),
        ({}, [*ingress(max_queued=5), {"name": "Editor-qwen_image_edit", "num_replicas": 2}], "restart it to apply"),
    ],
)
def test_other_change_is_logged_once_and_not_given(change, followed, caplog, args, deployments, reason):
    change(deployments, **args)
    with caplog.at_level(logging.ERROR):
        assert [followed.changed(), followed.changed()] == [None, None]
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    # The next one that may be applied is.
    change(ingress(max_queued=7))
    assert followed.changed() is not None


def test_missing_file_changes_nothing(change, followed):
    content = change.path.read_text()
    change.path.unlink()
    assert followed.changed() is None
    change.path.write_text(content)
    assert followed.changed() is None
