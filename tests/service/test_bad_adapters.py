"""Adapters that fail at run time, through HTTP and Ray: each its own request, and the replica serves the next one."""

import hashlib

import numpy as np
import pytest

from tests.conftest import LORAS
from tests.loraserver import lora_server
from tests.service.conftest import pixels

FILE = (LORAS / "my_lora_job/my_lora.safetensors").read_bytes()
LOCAL = [{"path": "my_lora_job/my_lora.safetensors"}]


@pytest.fixture
def server():
    with lora_server(FILE) as server:
        yield server


def test_bad_adapters_fail_their_own_requests_and_the_same_replica_goes_on(family, server, make_body):
    body = make_body(loras=[{"path": server.url}])
    [replica] = family.replica_pids("Editor-qwen_image_edit")
    days = {
        "its server answered 403": {"status": 403},
        "its server answered 500": {"status": 500},
        "its server sent nothing for 2 s": {"silent_after": 0},
        "its server broke the connection off": {"breaks_off_after": 0},
        "was changed after the request was accepted": {"etag": '"2"'},
        "was deleted after the request was accepted": {"status": 404},
    }
    good = {name: getattr(server, name) for day in days.values() for name in day}
    for reason, day in days.items():
        # Admission reads the header on a good day; the editor comes on the bad one.
        vars(server).update(good, later=day)
        result = family.result(family.submit(body))
        assert result["status"] == "failed"
        assert reason in result["error"]
        assert result["error"].startswith("prompt 0: the LoRA file")
    vars(server).update(good, later={})
    server.end.set()
    result, image = family.edit(body)
    _, local = family.edit(make_body(loras=LOCAL))
    assert np.array_equal(pixels(image), pixels(local))
    assert family.replica_pids("Editor-qwen_image_edit") == [replica]
    [runtime] = result["metadata"]["runtime"]
    [said] = runtime["adapters"]
    assert said["sha256"] == hashlib.sha256(FILE).hexdigest()


def test_record_of_an_adapter_by_url_is_the_one_that_was_explained(family, server, make_body):
    body = make_body(loras=[{"path": server.url}])
    explained = family.client.post("/v1/explain", json=body).json()
    result, _ = family.edit(body)
    assert result["metadata"]["effective"] == explained["effective"]
    assert list(family.folder.glob("artifacts/loras/*")) == []
