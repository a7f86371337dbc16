"""Where files lie in artifact storage: an upgrade finds what the version before has written."""

from serve_app.storage import artifact_keys


def test_keys_stay_as_they_are():
    assert artifact_keys.control_image("ab") == "controls/ab"
    assert artifact_keys.image("ab", ".jpeg") == "pictures/ab.jpeg"
    assert artifact_keys.downloaded_adapter("ab") == "loras/ab.safetensors"
    assert artifact_keys.record("r", 3) == "results/r/3.json"
    assert artifact_keys.adapter_digest("ab") == "adapters/ab.sha256"
    assert artifact_keys.warm_list("qwen_image") == "warm/qwen_image.json"
    assert artifact_keys.preview("r", 3) == "previews/r/3.json"
    assert artifact_keys.watched_marker("r") == "previews/r/watched"


def test_files_of_requests_lie_in_the_folders_that_are_swept():
    keys = (artifact_keys.control_image("a"), artifact_keys.image("a", ".png"), artifact_keys.downloaded_adapter("a"))
    assert {key.split("/")[0] for key in keys} == set(artifact_keys.REFERRED_FOLDERS)


def test_records_and_previews_lead_to_their_request():
    keys = (artifact_keys.record("r", 0), artifact_keys.preview("r", 0), artifact_keys.watched_marker("r"))
    assert [artifact_keys.request_of(key) for key in keys] == ["r", "r", "r"]
