"""Uploads over HTTP: sent once, named by many requests, a tenant's own, and limited."""

import hashlib
import io
from typing import Any

import PIL.Image
import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.config import AppConfig, AuthConfig
from serve_app.intake.keys import new_key
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import ON_BOTH_DATABASES, SHARES_AN_APPLICATION, Application
from tests.unit.test_explain import explained, turned_jpeg
from tests.unit.test_http_contract import ISO_UTC

pytestmark = SHARES_AN_APPLICATION

PHOTO = as_png(noise_image(80, 48, seed=1))
OTHER = as_png(noise_image(48, 80, seed=2))
ID = hashlib.sha256(PHOTO).hexdigest()
NEVER = "0" * 64


def error_of(answer, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["detail"]["error"]
    assert set(error) == {"code", "message", "details"}
    return error


def upload(client, data: bytes = PHOTO, **headers: str) -> dict[str, Any]:
    answer = client.post("/v1/uploads", content=data, headers={"content-type": "image/png"} | headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def with_limits(config: AppConfig, **jobs: object) -> AppConfig:
    return config.model_copy(update={"jobs": config.jobs.model_copy(update=jobs)})


@pytest.fixture
def limited(config):
    """A client of an application whose jobs section has these changes."""
    clients = []

    def make(**jobs: object) -> TestClient:
        clients.append(TestClient(Application(with_limits(config, **jobs)).app))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@ON_BOTH_DATABASES
def test_upload_is_answered_with_its_facts_and_requests_use_it(application, client, make_body):
    answer = upload(client)
    assert ISO_UTC.match(answer.pop("expires_at"))
    assert answer == {"id": ID, "sha256": ID, "width": 80, "height": 48, "format": "png", "notes": []}
    body = make_body(ctrl_img=f"upload:{ID}")
    assert explained(client, body) == explained(client, make_body(ctrl_img=as_base64(PHOTO)))
    assert client.post("/v1/inference?wait=5", json=body).json()["status"] == "succeeded"
    assert application.editors.tasks[0].plan.control_images == (ID,)


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", "application/json", None])
def test_file_may_come_as_the_body_whatever_its_content_type_says(client, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    assert client.post("/v1/uploads", content=PHOTO, headers=headers).json()["id"] == ID


@pytest.mark.parametrize("name", ["file", "image", "ünï"])
def test_file_may_come_in_a_form(client, name):
    sent = [("purpose", (None, "vision")), (name, ("x.txt", PHOTO, "text/plain"))]
    answer = client.post("/v1/uploads", files=sent)
    assert (answer.json()["id"], answer.json()["format"]) == (ID, "png")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"files": [("a", ("a", PHOTO)), ("b", ("b", PHOTO))]}, "2 files"),
        ({"files": [("a", (None, PHOTO))]}, "no file"),
        ({"files": [("a", ("a", b""))]}, "empty"),
        ({"content": b""}, "empty"),
        ({"content": PHOTO, "headers": {"content-type": "multipart/form-data"}}, "no boundary"),
        ({"content": PHOTO, "headers": {"content-type": "multipart/form-data; boundary=b"}}, "not a form"),
    ],
)
def test_body_that_is_not_one_file_is_refused(client, sent, reason):
    error = error_of(client.post("/v1/uploads", **sent))
    assert error["code"] == "BODY_INVALID"
    assert reason in error["message"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "not an image"),
        (PHOTO[:-20], "broken or truncated"),
        (bytes(20_000_001), "larger than 20000000 bytes"),
        (as_png(PIL.Image.new("L", (7000, 6000))), "at most 40000000"),
    ],
)
def test_file_that_is_no_control_image_is_refused_and_not_stored(application, client, data, reason):
    error = error_of(client.post("/v1/uploads", content=data))
    assert (error["code"], reason in error["message"]) == ("CONTROL_IMAGE_INVALID", True)
    assert reason in error["details"]["reason"]
    assert Artifacts(application.config.artifacts_url).older_than("controls", -60.0) == []


def test_notes_say_what_becomes_of_the_image(client, make_body):
    turned = upload(client, turned_jpeg())
    assert (turned["format"], "EXIF orientation 6" in turned["notes"][0]) == ("jpeg", True)
    clear = io.BytesIO()
    PIL.Image.new("RGBA", (64, 64)).save(clear, "PNG")
    assert upload(client, clear.getvalue())["notes"] == ["the image is changed when it becomes RGB: alpha dropped"]
    for exif in ("ignore", "apply"):
        body = make_body(ctrl_img=f"upload:{turned['id']}", exif=exif)
        assert explained(client, body) == explained(client, make_body(ctrl_img=as_base64(turned_jpeg()), exif=exif))


def test_upload_is_neither_read_nor_decoded_again(application, client, make_body, monkeypatch):
    upload(client)
    monkeypatch.setattr(application.service.resources.decoders, "facts", None)
    monkeypatch.setattr(application.service.resources.artifacts, "get", None)
    assert client.post("/v1/inference?wait=5", json=make_body(ctrl_img=f"upload:{ID}")).status_code == 200


def test_record_of_an_edit_names_the_upload_in_a_form_that_can_be_posted_again(client, make_body):
    upload(client)
    told = explained(client, make_body(ctrl_img=f"upload:{ID}"))["effective"][0]
    # Nothing but the upload keeps the image so far.
    assert explained(client, told["request"])["effective"][0]["control_images"] == told["control_images"]
    assert client.post("/v1/inference", json=told["request"]).status_code == 200


@ON_BOTH_DATABASES
def test_same_file_again_is_the_same_upload_and_kept_for_longer(client):
    first, second = upload(client), upload(client)
    assert first["expires_at"] < second["expires_at"]
    assert client.get(f"/v1/uploads/{ID}").json() == second
    assert first | {"expires_at": ""} == second | {"expires_at": ""}


@pytest.mark.parametrize(
    "name", [f"upload:{NEVER}", "upload:", "upload:abc", "upload:../../x", f"upload:{ID}/", f"upload:{ID[:-1]}\0"]
)
def test_upload_that_is_not_there_is_refused_with_the_prompt(client, make_body, name):
    upload(client)
    for route in ("/v1/inference", "/v1/explain"):
        error = error_of(client.post(route, json=make_body(ctrl_img=name)))
        assert (error["code"], error["details"]["prompt_index"]) == ("CONTROL_IMAGE_INVALID", 0)


@ON_BOTH_DATABASES
def test_expired_upload_is_refused_unless_a_request_needs_it(limited, make_body):
    client = limited(upload_keep_s=1e-6)
    upload(client)
    body = make_body(ctrl_img=f"upload:{ID}")
    expired = error_of(client.post("/v1/explain", json=body))
    never = error_of(client.post("/v1/explain", json=make_body(ctrl_img=f"upload:{NEVER}")))
    assert expired["message"].replace(ID, NEVER) == never["message"]
    assert error_of(client.get(f"/v1/uploads/{ID}"), 404)["code"] == "UPLOAD_NOT_FOUND"
    # A request that brings the image itself.
    assert client.post("/v1/inference?wait=5", json=make_body(ctrl_img=as_base64(PHOTO))).status_code == 200
    assert client.post("/v1/inference?wait=5", json=body).json()["status"] == "succeeded"


def test_deleted_upload_is_gone_with_its_file(application, client, make_body):
    upload(client)
    assert client.delete(f"/v1/uploads/{ID}").status_code == 204
    artifacts = Artifacts(application.config.artifacts_url)
    assert not artifacts.exists(artifact_keys.control_image(ID))
    assert error_of(client.delete(f"/v1/uploads/{ID}"), 404)["details"] == {"upload_id": ID}
    error_of(client.post("/v1/explain", json=make_body(ctrl_img=f"upload:{ID}")))


def test_request_keeps_the_file_of_a_deleted_upload_and_the_upload_that_of_a_purged_request(client, make_body):
    upload(client)
    body = make_body(ctrl_img=f"upload:{ID}")
    request_id = client.post("/v1/inference?wait=5", json=body).json()["request_id"]
    client.delete(f"/v1/uploads/{ID}")
    assert client.post("/v1/explain", json=body).status_code == 200
    upload(client)
    client.delete(f"/v1/requests/{request_id}?purge=true")
    assert client.post("/v1/explain", json=body).status_code == 200


@pytest.mark.parametrize("upload_id", ["x", NEVER, "%00", "..%2F", "ü"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_unknown_upload_is_not_found(client, upload_id, method):
    answer = client.request(method, f"/v1/uploads/{upload_id}")
    assert answer.status_code == 404
    assert answer.json()["detail"]["error"]["code"] in ("UPLOAD_NOT_FOUND", "NOT_FOUND")


def test_upload_whose_file_was_lost_is_refused_until_it_comes_again(application, client, make_body):
    upload(client)
    Artifacts(application.config.artifacts_url).delete([artifact_keys.control_image(ID)])
    body = make_body(ctrl_img=f"upload:{ID}")
    assert "upload the image again" in error_of(client.post("/v1/inference", json=body))["message"]
    upload(client)
    assert client.post("/v1/inference", json=body).status_code == 200


@ON_BOTH_DATABASES
def test_quota_is_refused_with_what_to_do(limited):
    client = limited(max_upload_bytes_per_tenant=len(PHOTO) + len(OTHER) - 1)
    upload(client)
    error = error_of(client.post("/v1/uploads", content=OTHER), 409)
    assert error["code"] == "UPLOAD_QUOTA_EXCEEDED"
    assert "DELETE /v1/uploads/{id}" in error["message"]
    expected = {"used": len(PHOTO), "sent": len(OTHER), "limit": len(PHOTO) + len(OTHER) - 1}
    assert {key: error["details"][key] for key in expected} == expected
    assert error["details"]["first_expires_at"] in error["message"]
    # What is there already takes no more.
    upload(client)
    client.delete(f"/v1/uploads/{ID}")
    upload(client, OTHER)


def test_refused_upload_leaves_no_file(limited, config):
    client = limited(max_upload_bytes_per_tenant=10)
    error = error_of(client.post("/v1/uploads", content=PHOTO), 409)
    assert "wait" not in error["message"]
    assert Artifacts(config.artifacts_url).older_than("controls", -60.0) == []


@ON_BOTH_DATABASES
def test_upload_is_its_tenants(config, tmp_path, make_body):
    keys = {who: new_key() for who in ("red", "blue", "operator")}
    file = tmp_path / "keys.yaml"
    tenants = {who: [keys[who][1]] for who in ("red", "blue")}
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [keys["operator"][1]]}))
    config = with_limits(config, max_upload_bytes_per_tenant=len(PHOTO))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app) as client:
        headers = {who: {"X-API-Key": key[0]} for who, key in keys.items()}
        assert client.post("/v1/uploads", content=PHOTO).status_code == 401
        upload(client, **headers["red"])

        def explain(who: str, upload_id: str):
            body = make_body(ctrl_img=f"upload:{upload_id}")
            return client.post("/v1/explain", json=body, headers=headers[who])

        assert [explain(who, ID).status_code for who in ("red", "operator")] == [200, 200]
        foreign, never = (error_of(explain("blue", upload_id))["message"] for upload_id in (ID, NEVER))
        assert foreign.replace(ID, NEVER) == never
        for method in ("GET", "DELETE"):
            error_of(client.request(method, f"/v1/uploads/{ID}", headers=headers["blue"]), 404)
        # Each has a quota of its own, and the same file is in it once for each.
        assert upload(client, **headers["blue"])["id"] == ID
        assert client.delete(f"/v1/uploads/{ID}", headers=headers["red"]).status_code == 204
        assert explain("blue", ID).status_code == 200
        assert explain("red", ID).status_code == 400


def test_many_uploads_in_one_request_are_refused_like_many_urls(client_with, config, make_body):
    client = client_with(fetch=config.fetch.model_dump() | {"max_urls": 2})
    body = make_body()
    body["prompts"] = [body["prompts"][0] | {"ctrl_img": f"upload:{n:064}"} for n in range(3)]
    error = error_of(client.post("/v1/explain", json=body))
    assert (error["code"], error["details"]["prompt_index"]) == ("INVALID_PARAMETER", 2)


def test_openapi_says_how_an_image_is_uploaded(client):
    operation = client.get("/openapi.json").json()["paths"]["/v1/uploads"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/octet-stream"}
    assert {"200", "400", "401", "408", "409", "413", "503"} <= set(operation["responses"])
