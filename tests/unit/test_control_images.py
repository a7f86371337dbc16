"""The control images of a request: numbered, shown to whoever sees the request, with their own media type."""

import hashlib
import io

import PIL.Image
import pytest
import yaml

from serve_app.images.decode import INPUT_FORMATS
from serve_app.images.media_types import UNKNOWN, media_type_of
from serve_app.intake.keys import new_key
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import SHARES_AN_APPLICATION
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION

MEDIA_TYPES = {name: f"image/{name.lower()}" for name in INPUT_FORMATS}


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    noise_image(32, 32).save(buffer, image_format)
    return buffer.getvalue()


def url_of(request_id: str, n: object) -> str:
    return f"/v1/requests/{request_id}/control-images/{n}"


@pytest.mark.parametrize("image_format", INPUT_FORMATS)
def test_file_is_sent_as_it_came_with_its_media_type(client, make_body, image_format):
    data = encoded(image_format)
    result = finished(client, make_body(ctrl_img=as_base64(data)))
    answer = client.get(url_of(result["request_id"], 0))
    assert answer.content == data
    assert answer.headers["content-type"] == MEDIA_TYPES[image_format]
    assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'


@pytest.mark.parametrize("data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_image_has_no_type_that_a_browser_runs(data):
    assert media_type_of(data) == UNKNOWN


def test_images_are_numbered_where_prompts_first_name_them(client, make_body):
    first, second = (as_png(noise_image(32, 32, seed)) for seed in (1, 2))
    body = make_body(ctrl_img=as_base64(first))
    [prompt] = body["prompts"]
    body["prompts"] = [prompt, prompt | {"ctrl_img": as_base64(second)}, prompt]
    result = finished(client, body)
    listed = result["metadata"]["control_images"]
    assert [image["sha256"] for image in listed] == [hashlib.sha256(data).hexdigest() for data in (first, second)]
    assert [client.get(image["url"]).content for image in listed] == [first, second]


def test_an_image_that_the_browser_has_is_not_sent_again(client, make_body):
    url = url_of(finished(client, make_body())["request_id"], 0)
    etag = client.get(url).headers["etag"]
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(url).headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize("n", [1, -1, 10**9])
def test_an_image_that_does_not_exist_is_404(client, make_body, n):
    answer = client.get(url_of(finished(client, make_body())["request_id"], n))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "IMAGE_NOT_FOUND")


def test_a_request_that_does_not_exist_is_404(client):
    assert client.get(url_of("0" * 32, 0)).json()["detail"]["error"]["code"] == "REQUEST_NOT_FOUND"


def test_purged_images_are_gone(client, make_body):
    request_id = finished(client, make_body())["request_id"]
    client.delete(f"/v1/requests/{request_id}?purge=true")
    answer = client.get(url_of(request_id, 0))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "IMAGE_NOT_FOUND")
    assert "control_images" not in client.get(f"/v1/requests/{request_id}/result").json()["metadata"]


@pytest.fixture
def keyed(client_with, tmp_path):
    """A client with the key of the tenant red, and the headers of blue and of an operator."""
    keys = {name: new_key() for name in ("red", "blue", "boss")}
    hashes = {name: sha256 for name, (_, sha256) in keys.items()}
    file = tmp_path / "keys.yaml"
    file.write_text(
        yaml.safe_dump(
            {"tenants": {name: [hashes[name]] for name in ("red", "blue")}, "operators": [hashes["boss"]]},
        )
    )
    client = client_with(auth={"keys_file": str(file)})
    client.headers["X-API-Key"] = keys["red"][0]
    return client, {name: {"X-API-Key": key} for name, (key, _) in keys.items()}


def test_only_those_who_see_the_request_see_its_control_images(keyed, make_body):
    client, headers = keyed
    url = url_of(finished(client, make_body())["request_id"], 0)
    assert client.get(url, headers=headers["blue"]).status_code == 404
    assert client.get(url, headers=headers["boss"]).status_code == 200
    assert client.get(url, headers={"X-API-Key": "edits_wrong"}).status_code == 401


def test_with_keys_the_url_in_the_result_is_signed_for_this_image_alone(keyed, make_body):
    client, _ = keyed
    result = finished(client, make_body())
    [image] = result["metadata"]["control_images"]
    del client.headers["X-API-Key"]
    assert PIL.Image.open(io.BytesIO(client.get(image["url"]).content)).size == (96, 64)
    token = image["url"].partition("?")[2]
    for path in ("control-images/1", "images/0", "result", "control-images/0/preview"):
        assert client.get(f"/v1/requests/{result['request_id']}/{path}?{token}").status_code == 401
