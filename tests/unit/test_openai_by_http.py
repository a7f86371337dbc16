"""OpenAI's images API by HTTP: bodies as clients send them, answers, and errors in the shape that they read."""

import base64
import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.errors import LoraChanged, OutOfMemory
from serve_app.intake.keys import new_key
from serve_app.telemetry.metrics import SUBMISSIONS
from tests.unit.conftest import IMAGE, Application
from tests.unit.openai_calls import IMAGE_TEXT, LORA, application_with_presets, data_url, form

EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"


@pytest.fixture(scope="module")
def application(shared_config) -> Application:
    return application_with_presets(shared_config)


@pytest.fixture(scope="module")
def client(application: Application) -> Iterator[TestClient]:
    with TestClient(application.app) as client:
        yield client


def answer_to(client, path: str, **request: object) -> dict:
    answer = client.post(path, **request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


def plan_of(application: Application):
    return application.editors.tasks[-1].plan


# Bodies as the clients' own code makes them, with the header lines of its HTTP library.


def open_webui(image: bytes, model: str, name: str = "image", count: int = 1) -> dict:
    """backend/open_webui/routers/images.py, by requests: a name for each file, `image[]` for a list."""
    boundary = "c0a1f4f3d5d24a5c8a4d2f0e1b3c5d7e"
    fields = {"model": model, "prompt": "[trigger] make it night", "response_format": "b64_json"}
    body = b""
    for key, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
    for number in range(count):
        filename = f"{number}f8fad5b-d9cb-469f-a165-70867728950e.png"
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'.encode()
        body += b"Content-Type: image/png\r\n\r\n" + image + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Authorization": "Bearer sk-x"}
    return {"content": body, "headers": headers | {"User-Agent": "python-requests/2.32.5"}}


def libre_chat(image: bytes, model: str) -> dict:
    """api/app/clients/tools/structured/OpenAIImageTools.js, by axios and form-data: chunked, without a length."""
    boundary = "--------------------------515890814546601021194782"
    fields = {"model": model, "prompt": "[trigger] make it night", "quality": "auto", "size": "auto"}
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="image[]"; filename="photograph.png"\r\n'
    head += "Content-Type: image/png\r\n\r\n"
    parts = [head.encode(), image, f"\r\n--{boundary}--\r\n".encode()]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Authorization": "Bearer sk-x"}
    return {"content": iter(parts), "headers": headers | {"User-Agent": "axios/1.12.1"}}


def lite_llm(image: bytes, model: str) -> dict:
    """Its handler of image edits, by httpx: always `image[]`, and the fields that were sent."""
    files = [("image[]", ("image.png", image, "image/png"))]
    data = {"model": model, "prompt": "[trigger] make it night", "n": "1", "size": "1024x1024", "user": "someone"}
    return {"files": files, "data": data, "headers": {"Authorization": "Bearer sk-x"}}


@pytest.mark.parametrize("make", [open_webui, libre_chat, lite_llm])
def test_clients_that_send_no_lora_fields_choose_a_preset_as_their_model(application, client, control_png, make):
    answer = answer_to(client, EDITS, **make(control_png, "house-style"))
    assert answer["data"] == [{"seed": 42, "url": None, "b64_json": IMAGE_TEXT}]
    assert (answer["output_format"], answer["quality"], answer["background"]) == ("png", "high", "opaque")
    plan = plan_of(application)
    assert (plan.prompt, plan.steps, plan.output_format) == ("sks make it night", 4, "png")
    assert [use.path for use in plan.adapters] == [LORA["path"]]
    assert answer["size"] == f"{plan.width}x{plan.height}" == ("1024x1024" if make is lite_llm else "1248x832")
    assert answer["ignored"] == (["user"] if make is lite_llm else [])


def test_list_of_images_of_open_webui(application, client, control_png):
    answer_to(client, EDITS, **open_webui(control_png, "two-images", "image[]", 2))
    assert len(plan_of(application).control_images) == 2


@pytest.mark.parametrize("key", ["images", "image"])
def test_json_body_with_images(application, client, control_png, key):
    url = data_url(control_png)
    images = [{"image_url": url}] if key == "images" else url
    body = {"model": "qwen_image_edit", "prompt": "x", key: images, "loras": [LORA | {"scale": 0.5}]}
    answer_to(client, EDITS, json=body | {"size": "100x90", "seed": 7, "num_inference_steps": 3})
    plan = plan_of(application)
    assert (plan.width, plan.height, plan.seed, plan.steps) == (96, 64, 7, 3)
    assert [use.scale for use in plan.adapters] == [0.5]


def test_answer_says_what_was_done(application, client, control_png):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png), "n": 2, "user": "me", "seed": 7}
    answer = answer_to(client, EDITS, json=body | {"size": "100x90", "output_format": "webp", "output_compression": 50})
    assert [image["seed"] for image in answer["data"]] == [7, 8]
    assert (answer["size"], answer["output_format"]) == ("96x64", "webp")
    assert answer["ignored"] == ["output_compression", "user"]
    assert answer["usage"]["output_tokens"] == 2 * 6 * 4
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
    result = client.get(f"/v1/requests/{answer['request_id']}/result").json()
    assert (result["status"], result["metadata"]["ignored"]) == ("succeeded", answer["ignored"])


def test_notes_and_fields_of_the_request_are_in_the_callers_words(client, control_png):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png), "size": "512x512"}
    answer = answer_to(client, EDITS, json=body | {"guidance_scale": 1, "negative_prompt": "rain"})
    assert answer["ignored"] == ["negative_prompt"]
    assert any("96x64" in note and "512x512" in note for note in answer["notes"])


def test_image_by_its_address(client, control_png):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png), "response_format": "url"}
    [image] = answer_to(client, EDITS, json=body)["data"]
    assert image["b64_json"] is None
    assert client.get(image["url"]).content == IMAGE


def test_text_to_image(application, client):
    answer = answer_to(client, GENERATIONS, json={"model": "posters", "prompt": "a poster"})
    assert (answer["size"], answer["output_format"]) == ("512x768", "jpeg")
    answer = answer_to(client, GENERATIONS, json={"model": "qwen_image", "prompt": "a poster", "loras": [LORA]})
    assert (answer["size"], answer["output_format"]) == ("1024x1024", "png")


def test_large_images_are_answered_whole(application, client, control_png, monkeypatch):
    monkeypatch.setattr("serve_app.api.image_text.PIECE_BYTES", 3)
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png), "n": 2}
    images = answer_to(client, EDITS, json=body)["data"]
    assert [base64.b64decode(image["b64_json"]) for image in images] == [IMAGE, IMAGE]


def test_models_are_listed_for_both_kinds_of_clients(client):
    """The rest of this list is tested with presets."""
    assert "qwen_image_edit" in {model["id"] for model in client.get("/v1/models").json()["models"]}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": "flux"}, "MODEL_NOT_FOUND", "model"),
        ({"model": None}, "MODEL_NOT_FOUND", "model"),
        ({"preset": "other-style"}, "INVALID_PARAMETER", "preset"),
        ({"model": "qwen_image_edit", "preset": "other-style"}, "MODEL_NOT_FOUND", "model"),
        ({"model": "posters"}, "INVALID_PARAMETER", "model"),
        ({"model": "qwen_image_edit"}, "LORA_FILE_REQUIRED", "loras"),
        ({"loras": [{"path": "job/none.safetensors"}]}, "LORA_NOT_FOUND", "loras"),
        ({"loras": [{"path": "../x"}]}, "LORA_PATH_FORBIDDEN", "loras"),
        ({"loras": [LORA] * 5}, "TOO_MANY_LORAS", "loras"),
        ({"image": None}, "CONTROL_IMAGE_REQUIRED", "image"),
        ({"image": ["a", "b"]}, "TOO_MANY_CONTROL_IMAGES", "image"),
        ({"image": "data:,x"}, "CONTROL_IMAGE_INVALID", "image"),
        ({"quality": "medium"}, "QUALITY_UNAVAILABLE", "quality"),
        ({"quality": "low"}, "QUALITY_UNAVAILABLE", "quality"),
        ({"prompt": "x" * 20_001}, "INVALID_PARAMETER", "prompt"),
        ({"prompt": None}, "INVALID_PARAMETER", "prompt"),
        ({"mask": "x"}, "INVALID_PARAMETER", "mask"),
        ({"background": "transparent"}, "INVALID_PARAMETER", "background"),
        ({"output_format": "svg"}, "INVALID_PARAMETER", "output_format"),
        ({"images": [{"file_id": "file-1"}]}, "INVALID_PARAMETER", "images"),
        ({"n": 11}, "INVALID_PARAMETER", "n"),
        ({"steps": 1, "num_inference_steps": 2}, "INVALID_PARAMETER", "steps"),
        ({"negative_prompt": "x" * 20_001}, "INVALID_PARAMETER", "negative_prompt"),
    ],
)
def test_refusals_name_the_field(client, control_png, fields, code, param):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png)} | fields
    error = error_of(client.post(EDITS, json=body), 400)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert error["message"]


def test_unknown_model_is_told_what_there_is(client):
    message = error_of(client.post(GENERATIONS, json={"model": "gpt-image-1", "prompt": "x"}), 400)["message"]
    assert all(name in message for name in ("gpt-image-1", "qwen_image_edit", "house-style"))


def test_edit_model_is_sent_to_the_other_route(client):
    error = error_of(client.post(GENERATIONS, json={"model": "house-style", "prompt": "x"}), 400)
    assert (error["param"], "/v1/images/edits" in error["message"]) == ("model", True)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "INVALID_PARAMETER"),
        ({"content": b"[]", "headers": {"content-type": "application/json"}}, "INVALID_PARAMETER"),
        ({"content": b"", "headers": {"content-type": "application/json"}}, "INVALID_PARAMETER"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, "INVALID_PARAMETER"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "BODY_INVALID"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "BODY_INVALID"),
        (form(("prompt", "x"), ("n", "1"), ("n", "2")), "INVALID_PARAMETER"),
        (form(("prompt", "x"), ("loras[][path]", "a"), ("loras[][scale]", "1"), ("loras[][path]", "b")), None),
    ],
)
def test_bodies_that_cannot_be_read(client, body, code):
    error = error_of(client.post(EDITS, **body), 400)
    assert error["code"] == (code or "INVALID_PARAMETER")


def test_truncated_forms_are_refused_and_never_fail(client, control_png):
    whole = form(("prompt", "x"), ("model", "house-style"), ("image", control_png))
    for length in range(0, len(whole["content"]), 97):
        answer = client.post(EDITS, content=whole["content"][:length], headers=whole["headers"])
        assert error_of(answer, 400)["message"]


def test_errors_before_a_route_have_openais_shape(config, client_with, tmp_path):
    _, sha256 = new_key()
    (tmp_path / "keys.yaml").write_text(f"tenants: {{acme: ['{sha256}']}}")
    keyed = client_with(auth={"keys_file": str(tmp_path / "keys.yaml")})
    error = error_of(keyed.post(EDITS, json={}), 401)
    assert (error["type"], error["code"]) == ("authentication_error", "UNAUTHORIZED")
    small = client_with(max_body_bytes=10)
    assert error_of(small.post(EDITS, json={"prompt": "x" * 10}), 413)["code"] == "BODY_TOO_LARGE"
    named = client_with(allowed_hosts=["edits.example"])
    assert error_of(named.post(EDITS, json={}), 400)["code"] == "HOST_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", EDITS, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", GENERATIONS, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/images/variations", 404, "NOT_FOUND"),
        ("POST", f"{EDITS}/", 404, "NOT_FOUND"),
    ],
)
def test_unknown_routes_and_methods_have_openais_shape(client, method, path, status, code):
    error = error_of(client.request(method, path), status)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


def test_other_routes_keep_the_contracts_shape(client):
    for path in ("/v1/images", "/v1/imagesx", "/nowhere"):
        assert client.get(path).json()["detail"]["error"]["code"] == "NOT_FOUND"


def test_overload_says_when_to_come_again(application, client, control_png):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png)}
    with application.service.resources.body_memory.hold("") as hold:
        hold.take_now(application.service.resources.body_memory.total)
        answer = client.post(EDITS, json=body)
    assert error_of(answer, 503)["type"] == "server_error"
    assert int(answer.headers["retry-after"]) > 0


def test_more_images_than_may_ever_wait_are_a_fault_of_the_call(client_with, control_png):
    body = {"model": "qwen_image_edit", "prompt": "x", "image": data_url(control_png), "loras": [LORA], "n": 3}
    answer = client_with(jobs={"max_queued_per_tenant": 2}).post(EDITS, json=body)
    assert error_of(answer, 400)["param"] == "n"


def test_unforeseen_error_has_openais_shape_and_tells_nothing(config, monkeypatch):
    async def fail(*args: object) -> None:
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr("serve_app.intake.openai.calls.OpenAICalls.submit", fail)
    with TestClient(Application(config).app, raise_server_exceptions=False) as client:
        error = error_of(client.post(GENERATIONS, json={"prompt": "x"}), 500)
    assert (error["type"], error["code"], error["param"]) == ("server_error", "INTERNAL_ERROR", None)
    assert "secret" not in error["message"]


@pytest.mark.parametrize(
    ("failure", "status", "code", "type_"),
    [
        (OutOfMemory("an image of 64x64 does not fit"), 500, "OUT_OF_MEMORY", "server_error"),
        (LoraChanged("the file has changed"), 400, "LORA_CHANGED", "invalid_request_error"),
    ],
)
def test_edit_that_fails_is_an_error_that_clients_do_not_repeat(
    application, client, control_png, failure, status, code, type_
):
    application.editors.errors = [failure]
    answer = client.post(EDITS, json={"model": "house-style", "prompt": "x", "image": data_url(control_png)})
    error = error_of(answer, status)
    assert (error["code"], error["type"], error["message"]) == (code, type_, f"prompt 0: {failure.message}")
    assert answer.headers["x-should-retry"] == "false"


def events_of(client, path: str, **body: object) -> list[tuple[str, dict]]:
    answer = client.post(path, json=body | {"stream": True})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    texts = [text for text in answer.text.split("\n\n") if text and not text.startswith(":")]
    pairs = [text.split("\n", 1) for text in texts]
    return [(event.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for event, data in pairs]


def test_stream_ends_with_the_images(client, control_png):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png), "size": "96x64"}
    events = events_of(client, EDITS, n=2, **body)
    assert sorted(data["index"] for _, data in events) == [0, 1]
    for name, data in events:
        assert name == data["type"] == "image_edit.completed"
        assert data["b64_json"] == IMAGE_TEXT
        assert (data["size"], data["quality"], data["background"]) == ("96x64", "high", "opaque")
        assert data["output_format"] == "png"
        assert data["usage"]["output_tokens"] == 24
        assert isinstance(data["created_at"], int)
    [(name, _)] = events_of(client, GENERATIONS, model="posters", prompt="x")
    assert name == "image_generation.completed"


def test_error_of_a_stream_before_its_start_decides_the_status(client):
    answer = client.post(EDITS, json={"model": "house-style", "prompt": "x", "stream": True})
    assert error_of(answer, 400)["code"] == "CONTROL_IMAGE_REQUIRED"


def test_error_of_a_stream_is_its_last_event(application, client, control_png):
    application.editors.errors = [OutOfMemory("an image of 64x64 does not fit")]
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png)}
    [(name, data)] = events_of(client, EDITS, **body)
    assert (name, data["type"], data["error"]["code"]) == ("error", "error", "OUT_OF_MEMORY")
    assert set(data["error"]) == {"message", "type", "param", "code"}


def test_every_answer_has_an_id(client, control_png):
    body = {"model": "house-style", "prompt": "x", "image": data_url(control_png)}
    answers = [client.post(EDITS, json=each) for each in (body, body | {"stream": True}, {})]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 3
    # Serve has put an id into the request, and adds it to the answer itself.
    assert "x-request-id" not in client.post(EDITS, json={}, headers={"X-Request-ID": "serves"}).headers


def test_calls_are_counted_like_other_submissions(config, control_png):
    from tests.unit.test_telemetry import Observed

    observed = Observed(config)
    body = {"model": "qwen_image_edit", "prompt": "x", "image": data_url(control_png), "loras": [LORA]}
    with observed.client as client:
        for headers in ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}):
            answer_to(client, EDITS, json=body, headers=headers)
        for changes in ({"model": "flux"}, {"image": None}, {"loras": []}, {"model": None}):
            client.post(EDITS, json=body | changes)
    assert observed.meter.of(SUBMISSIONS) == {
        ("qwen_image_edit", "ACCEPTED"): 1,
        ("qwen_image_edit", "REPEATED"): 1,
        ("none", "MODEL_NOT_FOUND"): 2,
        ("qwen_image_edit", "CONTROL_IMAGE_REQUIRED"): 1,
        ("qwen_image_edit", "LORA_FILE_REQUIRED"): 1,
    }
