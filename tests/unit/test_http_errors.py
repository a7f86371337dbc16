"""Every error code of the contract by HTTP, and the order in which the checks are made."""

import asyncio
import base64
import hashlib
from contextlib import nullcontext
from pathlib import Path

import anyio
import PIL.Image
import pytest
from aiohttp import web

from serve_app.api.middleware import AnswerErrors
from serve_app.errors import OutOfMemory
from serve_app.images import decoder_pool
from tests.conftest import as_base64, as_png, noise_image
from tests.unit.conftest import SHARES_AN_APPLICATION, safetensors_bytes
from tests.unit.test_http_contract import finished

pytestmark = SHARES_AN_APPLICATION


def refusal(client, body, status: int = 400) -> dict:
    answer = client.post("/v1/inference", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"detail"}
    error = answer.json()["detail"]["error"]
    assert set(error) == {"code", "message", "details"}
    return error


def test_unknown_model(client, make_body):
    error = refusal(client, make_body(model="flux"))
    assert (error["code"], error["details"]) == ("MODEL_NOT_FOUND", {"supported_models": ["qwen_image_edit"]})


def test_no_lora(client, make_body):
    assert refusal(client, make_body(loras=[]))["code"] == "LORA_FILE_REQUIRED"


def test_no_lora_is_accepted_where_the_config_allows(client_with, make_body):
    assert finished(client_with(require_lora=False), make_body(loras=[]))["status"] == "succeeded"


def test_transformer_of_a_model_with_one(client, make_body):
    lora = {"path": "job/lora.safetensors", "transformer": "low"}
    error = refusal(client, make_body(loras=[lora]))
    assert error["code"] == "MOE_FORMAT_NOT_SUPPORTED"
    assert error["details"]["loras"] == [lora | {"network_multiplier": 1.0}]


@pytest.mark.parametrize(("limit", "code"), [(1, "SINGLE_LORA_ONLY"), (2, "TOO_MANY_LORAS")])
def test_too_many_loras(client_with, make_body, limit, code):
    error = refusal(client_with(max_loras_per_request=limit), make_body(loras=[{"path": "a"}] * (limit + 1)))
    assert (error["code"], error["details"]) == (code, {"loras": ["a"] * (limit + 1), "max": limit})


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "job/../../x", "a\0b", "C:\\x", "..\\x", "\\\\host\\x"])
def test_path_that_leaves_the_root(client, make_body, path):
    error = refusal(client, make_body(loras=[{"path": path}]))
    assert (error["code"], error["details"]) == ("LORA_PATH_FORBIDDEN", {"lora_path": path})


def test_symbolic_link_that_leaves_the_root(client, make_body, config, tmp_path):
    loras = Path(config.lora_root)
    (tmp_path / "outside.safetensors").write_bytes(safetensors_bytes())
    (loras / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (loras / "folder").symlink_to(tmp_path)
    for path in ("link.safetensors", "folder/outside.safetensors"):
        assert refusal(client, make_body(loras=[{"path": path}]))["code"] == "LORA_PATH_FORBIDDEN"


@pytest.mark.parametrize("path", ["job/other.safetensors", "job", "", "."])
def test_missing_lora(client, make_body, path):
    error = refusal(client, make_body(loras=[{"path": path}]))
    assert (error["code"], error["details"]) == ("LORA_NOT_FOUND", {"lora_path": path})


def test_path_that_no_file_can_have(client, make_body):
    error = refusal(client, make_body(loras=[{"path": "a" * 251}]))
    assert (error["code"], error["details"]) == ("LORA_NOT_FOUND", {"lora_path": ascii("a" * 100)})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"PK\x03\x04" + bytes(60), "a pickle"),
        (b"\x80\x02}q\x00(X\x01\x00", "a pickle"),
        (b"short", "not a safetensors file"),
        (safetensors_bytes()[:30], "truncated within its header"),
        (safetensors_bytes()[:-1], "but its header describes"),
        ((5).to_bytes(8, "little") + b"{nope", "broken safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "broken safetensors header"),
        ((37).to_bytes(8, "little") + b'{"x":{"data_offsets":[0,"b"],"shape":[]}}'[:37], "broken safetensors header"),
    ],
)
def test_file_that_is_no_lora(client, make_body, config, content, reason):
    (Path(config.lora_root) / "bad.safetensors").write_bytes(content)
    error = refusal(client, make_body(loras=[{"path": "bad.safetensors"}]))
    assert (error["code"], error["details"]) == ("LORA_INVALID_FILE", {"lora_path": "bad.safetensors"})
    assert reason in error["message"]


@pytest.mark.parametrize("image", [None, ""])
def test_missing_control_image(client, make_body, image):
    body = make_body()
    body["prompts"] = [body["prompts"][0], body["prompts"][0] | {"ctrl_img": image}]
    error = refusal(client, body)
    assert error["code"] == "CONTROL_IMAGE_REQUIRED"
    assert error["details"] == {"model": "qwen_image_edit", "prompt_index": 1}


def test_too_many_control_images(client, make_body):
    error = refusal(client, make_body(ctrl_img_1="a", ctrl_img_3="b"))
    assert (error["code"], error["details"]) == ("TOO_MANY_CONTROL_IMAGES", {"prompt_index": 0, "max": 1})


def truncated() -> str:
    return as_base64(as_png(PIL.Image.new("RGB", (64, 64), "red"))[:60])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("abc!", "neither an http"),
        ("bm90IGEgcGljdHVyZQ==", "not an image"),
        (truncated(), "broken or truncated"),
        (as_base64(as_png(PIL.Image.new("RGB", (4000, 2)))), "too unequal"),
        (as_base64(as_png(PIL.Image.new("L", (300, 300)))), "at most 50000"),
        ("http://127.0.0.1:1/x.png", "not a public one"),
        ("http://user@[", "not a valid http"),
    ],
)
def test_bad_control_image(client_with, make_body, image, reason):
    error = refusal(client_with(fetch={"max_pixels": 50_000}), make_body(ctrl_img=image))
    assert error["code"] == "CONTROL_IMAGE_INVALID"
    assert error["details"]["prompt_index"] == 0
    assert reason in error["details"]["reason"]


def damaged() -> str:
    data = bytearray(as_png(PIL.Image.new("RGB", (64, 64), "red")))
    data[data.index(b"IDAT") + 10] ^= 1
    return as_base64(bytes(data))


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_damaged_pixels_are_not_edited(client, make_body, exif):
    error = refusal(client, make_body(ctrl_img=damaged(), exif=exif))
    assert error["code"] == "CONTROL_IMAGE_INVALID"
    assert "broken" in error["details"]["reason"]


def test_url_safe_base64_is_the_same_image(client, make_body):
    image = next(text for seed in range(99) if {"+", "/"} <= set(text := as_base64(as_png(noise_image(64, 64, seed)))))
    texts = (image, image.translate(str.maketrans("+/", "-_")).rstrip("="), f"DATA:image/png;base64,{image}")
    answers = [client.post("/v1/explain", json=make_body(ctrl_img=text)).json()["effective"] for text in texts]
    digests = [record["control_images"][0]["sha256"] for [record] in answers]
    assert digests == [hashlib.sha256(base64.b64decode(image)).hexdigest()] * 3


def test_busy_service_does_not_blame_the_image(client, make_body, monkeypatch):
    monkeypatch.setattr(decoder_pool, "WALL_FACTOR", 0.0)
    answer = client.post("/v1/explain", json=make_body())
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (503, "OVERLOADED")
    assert int(answer.headers["Retry-After"]) > 0


def test_large_base64_image(client_with, make_body):
    error = refusal(client_with(fetch={"max_bytes": 100}), make_body())
    assert "larger than 100 bytes" in error["details"]["reason"]


@pytest.mark.parametrize(
    ("fields", "parameter"), [({"resolution": "High"}, "resolution"), ({"prompt": "x" * 20_001}, "prompt")]
)
def test_parameter_that_cannot_be_served(client, make_body, fields, parameter):
    error = refusal(client, make_body(**fields))
    assert (error["code"], error["details"]) == ("INVALID_PARAMETER", {"prompt_index": 0, "parameter": parameter})


def test_unknown_request(client):
    for route in ("status", "result", "images/0"):
        answer = client.get(f"/v1/requests/nobody/{route}")
        error = answer.json()["detail"]["error"]
        assert (answer.status_code, error["code"], error["details"]) == (
            404,
            "REQUEST_NOT_FOUND",
            {"request_id": "nobody"},
        )


def test_unknown_image(application, client, make_body):
    application.editors.gate.clear()
    request_id = client.post("/v1/inference", json=make_body()).json()["request_id"]
    for n, reason in ((0, "not finished"), (1, "has 1 images"), (-1, "has 1 images")):
        answer = client.get(f"/v1/requests/{request_id}/images/{n}")
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "IMAGE_NOT_FOUND")
        assert reason in answer.json()["detail"]["error"]["message"]
    application.editors.gate.set()


def test_large_body(client_with, make_body):
    small = client_with(max_body_bytes=1000)
    error = refusal(small, make_body(prompt="x" * 1000), status=413)
    assert error["code"] == "BODY_TOO_LARGE"


def test_large_body_without_a_length(client_with):
    answer = client_with(max_body_bytes=1000).post("/v1/inference", content=(bytes(300) for _ in range(5)))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"model": None}, ["body", "model"]),
        ({"prompts": []}, ["body", "prompts"]),
        ({"loras": None}, ["body", "loras"]),
        ({"loras": [{"path": "a", "network_multiplier": 2.1}]}, ["body", "loras", 0, "network_multiplier"]),
        ({"prompts": [{"prompt": "x", "width": 63}]}, ["body", "prompts", 0, "width"]),
        ({"prompts": [{"prompt": "x", "height": 4097}]}, ["body", "prompts", 0, "height"]),
        ({"prompts": [{"prompt": "x", "guidance_scale": 20.5}]}, ["body", "prompts", 0, "guidance_scale"]),
        ({"prompts": [{"prompt": "x", "sample_steps": 0}]}, ["body", "prompts", 0, "sample_steps"]),
        ({"prompts": [{"prompt": "x", "seed": -2}]}, ["body", "prompts", 0, "seed"]),
        ({"prompts": [{"prompt": "x", "seed": 2**63}]}, ["body", "prompts", 0, "seed"]),
        ({"prompts": [{"prompt": "x", "num_frames": 0}]}, ["body", "prompts", 0, "num_frames"]),
        ({"prompts": [{"prompt": "x", "fps": 121}]}, ["body", "prompts", 0, "fps"]),
        ({"prompts": [{"prompt": "x", "resolution": "Low"}]}, ["body", "prompts", 0, "resolution"]),
        ({"prompts": [{}]}, ["body", "prompts", 0, "prompt"]),
    ],
)
def test_shape(client, make_body, changes, place):
    body = {key: value for key, value in (make_body() | changes).items() if value is not None}
    answer = client.post("/v1/inference", json=body | {"hf_token": "hf_secret"})
    assert answer.status_code == 422
    assert "hf_secret" not in answer.text
    [fault] = answer.json()["detail"]
    assert set(fault) == {"type", "loc", "msg"}
    assert fault["loc"] == place


def test_body_that_is_no_json(client):
    answer = client.post("/v1/inference", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "json_invalid")


def test_checks_are_made_in_the_contracts_order(client_with, make_body, tmp_path):
    """A body with every fault at once is answered with the first; mended one by one, with the next."""
    client = client_with(max_loras_per_request=1)
    (tmp_path / "loras/bad.safetensors").write_bytes(b"")
    body = make_body(model="flux", loras=[])
    image = body["prompts"][0]["ctrl_img"]
    body["prompts"][0] |= {"width": 1, "ctrl_img": None, "resolution": "High"}

    def prompt(**changes: object) -> None:
        body["prompts"][0] |= changes

    assert client.post("/v1/inference", json=body).status_code == 422
    prompt(width=64)
    assert refusal(client, body)["code"] == "MODEL_NOT_FOUND"
    body["model"] = "qwen_image_edit"
    assert refusal(client, body)["code"] == "LORA_FILE_REQUIRED"
    body["loras"] = [{"path": "../x", "transformer": "low"}, {"path": "../y"}]
    assert refusal(client, body)["code"] == "MOE_FORMAT_NOT_SUPPORTED"
    del body["loras"][0]["transformer"]
    assert refusal(client, body)["code"] == "SINGLE_LORA_ONLY"
    del body["loras"][1]
    assert refusal(client, body)["code"] == "LORA_PATH_FORBIDDEN"
    body["loras"][0]["path"] = "nothing"
    assert refusal(client, body)["code"] == "LORA_NOT_FOUND"
    body["loras"][0]["path"] = "bad.safetensors"
    assert refusal(client, body)["code"] == "CONTROL_IMAGE_REQUIRED"
    prompt(ctrl_img_1="x", ctrl_img_2="y")
    assert refusal(client, body)["code"] == "TOO_MANY_CONTROL_IMAGES"
    prompt(ctrl_img_2=None)
    assert refusal(client, body)["code"] == "CONTROL_IMAGE_INVALID"
    prompt(ctrl_img_1=image)
    assert refusal(client, body)["code"] == "INVALID_PARAMETER"
    prompt(resolution="Default")
    assert refusal(client, body)["code"] == "LORA_INVALID_FILE"
    body["loras"][0]["path"] = "job/lora.safetensors"
    assert client.post("/v1/inference", json=body).status_code == 200


class TestDownloadedLora:
    """`loras[].path` as a URL. The server runs in the test's loop, the application in its client's own."""

    @pytest.fixture
    async def hub(self, web_server):
        self.requests: list[web.Request] = []
        self.content = safetensors_bytes()
        self.status = 200

        async def serve(request: web.Request) -> web.Response:
            self.requests.append(request)
            return web.Response(body=self.content, status=self.status)

        return await web_server(serve)

    @pytest.fixture
    def open_client(self, client_with):
        return client_with(fetch={"allow_private_addresses": True, "hub_hosts": ["127.0.0.1"]})

    async def post(self, client, body) -> dict:
        return (await asyncio.to_thread(client.post, "/v1/inference", json=body)).json()

    async def test_hub_page_is_resolved(self, hub, open_client, make_body):
        url = f"{hub}/owner/repo/blob/main/a.safetensors"
        result = await asyncio.to_thread(finished, open_client, make_body(loras=[{"path": url}]))
        assert result["status"] == "succeeded"
        assert self.requests[0].path == "/owner/repo/resolve/main/a.safetensors"

    async def test_token_goes_to_the_hub_alone(self, hub, client_with, make_body):
        client = client_with(fetch={"allow_private_addresses": True})
        body = make_body(loras=[{"path": f"{hub}/a.safetensors"}], hf_token="hf_x")
        assert (await asyncio.to_thread(finished, client, body))["status"] == "succeeded"
        assert "Authorization" not in self.requests[0].headers

    async def test_same_url_twice_at_once_is_one_file(self, hub, open_client, make_body, tmp_path):
        url = f"{hub}/a.safetensors"
        result = await asyncio.to_thread(finished, open_client, make_body(loras=[{"path": url}] * 4))
        assert result["status"] == "succeeded"
        assert len(list((tmp_path / "artifacts/loras").iterdir())) == 1

    async def test_downloaded_file_is_kept_where_editors_find_it(
        self, hub, application, open_client, make_body, tmp_path
    ):
        await asyncio.to_thread(finished, open_client, make_body(loras=[{"path": f"{hub}/a.safetensors"}]))
        [kept] = (tmp_path / "artifacts/loras").iterdir()
        assert kept.read_bytes() == self.content

    async def test_folder_page_is_refused(self, hub, open_client, make_body):
        answer = await self.post(open_client, make_body(loras=[{"path": f"{hub}/owner/repo/tree/main"}]))
        assert answer["detail"]["error"]["code"] == "LORA_DOWNLOAD_FAILED"
        assert "/tree/" in answer["detail"]["error"]["message"]

    async def test_html_is_refused(self, hub, open_client, make_body):
        self.content = b"<html>please log in</html>"
        answer = await self.post(open_client, make_body(loras=[{"path": f"{hub}/a.safetensors"}]))
        assert answer["detail"]["error"]["code"] == "LORA_INVALID_FILE"
        assert "HTML" in answer["detail"]["error"]["message"]

    async def test_refused_download_says_why(self, hub, open_client, make_body):
        self.status = 403
        answer = await self.post(open_client, make_body(loras=[{"path": f"{hub}/a.safetensors"}]))
        error = answer["detail"]["error"]
        assert (error["code"], error["details"]) == ("LORA_DOWNLOAD_FAILED", {"lora_path": f"{hub}/a.safetensors"})
        assert "answered 403" in error["message"]

    async def test_private_address_is_refused_by_default(self, hub, client, make_body):
        answer = await self.post(client, make_body(loras=[{"path": f"{hub}/a.safetensors"}]))
        assert "not a public one" in answer["detail"]["error"]["message"]
        assert self.requests == []


def test_error_of_an_edit_is_a_string_in_the_result(application, client, make_body):
    application.editors.errors = [OutOfMemory("an image of 64x64 does not fit")]
    assert finished(client, make_body())["error"] == "prompt 0: an image of 64x64 does not fit"


@pytest.mark.parametrize(
    "name",
    ["X-Request-Timeout-Seconds", "x-request-disconnect-disabled", "x-session-id", "serve_multiplexed_model_id"],
)
def test_rays_headers_do_not_reach_the_application(config, name):
    from starlette.testclient import TestClient

    from serve_app.api.middleware import DropRayHeaders

    seen = []

    async def app(scope, receive, send):
        seen.extend(key for key, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    TestClient(DropRayHeaders(app)).get("/", headers={name: "1", name.replace("_", "-"): "1", "x-request-id": "kept"})
    assert b"x-request-id" in seen
    assert name.lower().encode() not in seen
    assert name.lower().replace("_", "-").encode() not in seen


def stream_that_ends_with(error: Exception) -> AnswerErrors:
    """An application that raises this once its answer has begun and its client was asked for more."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        raise error

    return AnswerErrors(app)


NOT_TAKEN = anyio.BrokenResourceError()


@pytest.mark.parametrize(
    ("message", "error", "is_raised"),
    [
        ("http.disconnect", ExceptionGroup("of a stream", [NOT_TAKEN]), False),
        ("http.disconnect", ExceptionGroup("of a stream", [ExceptionGroup("nested", [NOT_TAKEN])]), False),
        ("http.request", ExceptionGroup("of a stream", [NOT_TAKEN]), True),
        ("http.disconnect", ExceptionGroup("of a stream", [NOT_TAKEN, KeyError("x")]), True),
        ("http.disconnect", KeyError("x"), True),
    ],
)
async def test_client_that_leaves_a_stream_is_no_error(message, error, is_raised):
    async def receive():
        return {"type": message}

    async def send(sent):
        pass

    with pytest.raises(type(error)) if is_raised else nullcontext():
        await stream_that_ends_with(error)({"type": "http", "method": "GET", "path": "/"}, receive, send)
