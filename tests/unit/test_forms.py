"""Requests as forms: the part `request` is the JSON, and its control images may be other parts."""

import json
from typing import Any

import pytest

from serve_app.api.bodies.json_bodies import BYTES_PER_VALUE, count_values
from serve_app.api.bodies.limits import COPIES
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import SHARES_AN_APPLICATION

pytestmark = SHARES_AN_APPLICATION

ROUTES = ("/v1/inference", "/v1/explain")
PHOTO = as_png(noise_image(80, 48, seed=1))


def form(body: dict | str, **files: bytes) -> dict[str, Any]:
    """Arguments of a POST of a form with this request and these files."""
    text = body if isinstance(body, str) else json.dumps(body)
    return {"files": [("request", (None, text)), *((name, (f"{name}.png", data)) for name, data in files.items())]}


def error_of(answer) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["detail"]["error"]
    assert set(error) == {"code", "message", "details"}
    return error


def test_control_image_may_be_a_part(application, client, make_body):
    body = make_body(ctrl_img="part:photo")
    result = client.post("/v1/inference?wait=5", **form(body, photo=PHOTO)).json()
    assert result["status"] == "succeeded"
    [stored] = application.editors.tasks[0].plan.control_images
    explained = client.post("/v1/explain", **form(body, photo=PHOTO)).json()
    assert (explained["effective"][0]["control_images"][0]["sha256"], explained["ignored"]) == (stored, [])
    same = client.post("/v1/explain", json=make_body(ctrl_img=as_base64(PHOTO))).json()
    assert same == explained


def test_effective_request_of_a_part_can_be_posted_again(client, make_body):
    first = client.post("/v1/inference?wait=5", **form(make_body(ctrl_img="part:photo"), photo=PHOTO)).json()
    assert first["status"] == "succeeded"
    again = client.post("/v1/explain", **form(make_body(ctrl_img="part:photo"), photo=PHOTO)).json()["effective"][0]
    answer = client.post("/v1/explain", json=again["request"])
    assert answer.json()["effective"][0]["control_images"] == again["control_images"]


def test_request_part_may_be_a_file_and_parts_may_come_in_any_order(client, make_body):
    body = json.dumps(make_body(ctrl_img="part:ünï"))
    files = [("ünï", ("x.png", PHOTO, "text/plain")), ("request", ("body.json", body, "image/png"))]
    assert client.post("/v1/explain", files=files).status_code == 200


def test_several_prompts_may_share_parts(client, make_body):
    body = make_body()
    body["prompts"] = [body["prompts"][0] | {"ctrl_img": f"part:{name}"} for name in ("a", "b", "a")]
    explained = client.post("/v1/explain", **form(body, a=PHOTO, b=as_png(noise_image(64, 64)))).json()
    sizes = [effective["control_images"][0]["size"] for effective in explained["effective"]]
    assert sizes == [[80, 48], [64, 64], [80, 48]]


def test_parts_that_nobody_refers_to_are_ignored_and_named(client, make_body):
    body = make_body(steps=3, ctrl_img="part:photo")
    sent = form(body, photo=PHOTO, spare=b"x")
    sent["files"].append(("note", (None, "a text")))
    explained = client.post("/v1/explain", **sent).json()
    assert explained["ignored"] == ["prompts[].steps", "part:note", "part:spare"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([("photo", ("x.png", PHOTO))], "no part named 'request'"),
        ([("request", (None, "{}")), ("request", (None, "{}"))], "2 parts named 'request'"),
        ([("request", (None, "{}")), ("a", ("x", b"1")), ("a", (None, "2"))], "2 parts named 'a'"),
    ],
)
def test_form_without_the_parts_of_a_request_is_refused(client, route, parts, reason):
    error = error_of(client.post(route, files=parts))
    assert error["code"] == "BODY_INVALID"
    assert reason in error["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_form_that_cannot_be_read_is_refused_in_the_contracts_shape(client, route):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for body in (b"", b"{}", b"--b\r\n", b"--b\r\nX: y\r\n\r\n{}\r\n--b--"):
        error = error_of(client.post(route, content=body, headers=headers))
        assert error["code"] == "BODY_INVALID"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "the body has no part 'photo'"),
        ([("photos", ("x.png", PHOTO))], "the body has no part 'photo'"),
        ([("photo", (None, "x.png"))], "the part 'photo' is a text"),
        ([("photo", ("x.png", b""))], "not an image"),
        ([("photo", ("x.png", b"an image", "image/png"))], "not an image"),
        ([("photo", ("x.png", bytes(20_000_001)))], "larger than 20000000 bytes"),
    ],
)
def test_part_that_is_no_control_image_is_refused_with_the_prompt(client, make_body, parts, reason):
    body = json.dumps(make_body(ctrl_img="part:photo"))
    error = error_of(client.post("/v1/inference", files=[("request", (None, body)), *parts]))
    assert (error["code"], error["details"]["prompt_index"]) == ("CONTROL_IMAGE_INVALID", 0)
    assert reason in error["message"]


def test_part_in_a_json_body_is_refused(client, make_body):
    error = error_of(client.post("/v1/inference", json=make_body(ctrl_img="part:photo")))
    assert error["code"] == "CONTROL_IMAGE_INVALID"
    assert "send multipart/form-data" in error["message"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("text", "type_"), [("{", "json_invalid"), ("[1]", "model_attributes_type"), ('{"loras": []}', "missing")]
)
def test_request_part_of_the_wrong_shape_is_answered_like_such_a_body(client, route, text, type_):
    as_form = client.post(route, **form(text, photo=PHOTO))
    as_json = client.post(route, content=text, headers={"content-type": "application/json"})
    assert as_form.status_code == as_json.status_code == 422
    assert as_form.json() == as_json.json()
    assert as_form.json()["detail"][0]["type"] == type_


def test_same_key_with_another_file_is_a_conflict(client, make_body):
    key, body = {"Idempotency-Key": "k"}, make_body(ctrl_img="part:photo")
    first, same, other = (
        client.post("/v1/inference", headers=key, **form(body, photo=photo))
        for photo in (PHOTO, PHOTO, as_png(noise_image(64, 64)))
    )
    assert first.json()["request_id"] == same.json()["request_id"]
    assert (other.status_code, other.json()["detail"]["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")


def test_bytes_of_a_file_do_not_count_as_json(application, client, make_body, monkeypatch):
    """A photograph has as many bytes that could be brackets and commas as any other bytes."""
    taken = []
    submit = application.service.submissions.explain

    async def watched(*arguments):
        taken.append(application.service.resources.body_memory.held)
        return await submit(*arguments)

    monkeypatch.setattr(application.service.submissions, "explain", watched)
    body = make_body(ctrl_img="part:photo")
    answer = client.post("/v1/explain", **form(body, photo=PHOTO, spare=b"{[," * 1_000_000))
    assert answer.status_code == 200
    length = int(answer.request.headers["content-length"])
    values = count_values(json.dumps(body).encode())
    assert taken == [COPIES * length + BYTES_PER_VALUE * values]


def test_openapi_names_both_formats(client):
    document = client.get("/openapi.json").json()
    for route in ROUTES:
        content = document["paths"][route]["post"]["requestBody"]["content"]
        assert list(content) == ["application/json", "multipart/form-data"]
        schema = content["multipart/form-data"]["schema"]
        assert schema["properties"]["request"] == content["application/json"]["schema"]
        assert "BODY_INVALID" in json.dumps(document["paths"][route]["post"]["responses"]["400"])
