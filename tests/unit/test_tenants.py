"""Keys, tenants and what each may see, over the real application; and a webhook from POST to receiver."""

import asyncio
import re
import time

import pytest
import yaml
from aiohttp import web
from pydantic import SecretStr
from standardwebhooks import Webhook
from starlette.testclient import TestClient

from serve_app.config import AuthConfig, WebhooksConfig
from serve_app.intake.keys import new_key
from tests.conformity import code_of
from tests.unit.conftest import ON_BOTH_DATABASES, Application
from tests.unit.receivers import SECRET
from tests.unit.test_http_contract import finished
from tests.unit.test_watching import submit

pytestmark = ON_BOTH_DATABASES


class Keyed:
    """A client of an application with keys, and what to send as whom."""

    def __init__(self, client: TestClient, keys: dict[str, str]) -> None:
        self.client = client
        self._keys = keys

    def get(self, path: str, who: str, **params: object) -> dict:
        answer = self.client.get(path, headers=self.key(who), params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, who: str) -> dict[str, str]:
        return {"X-API-Key": self._keys[who]}


@pytest.fixture
def keyed(config, tmp_path):
    pairs = {who: new_key() for who in ("red", "blue", "operator")}
    file = tmp_path / "keys.yaml"
    tenants = {who: [pairs[who][1]] for who in ("red", "blue")}
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [pairs["operator"][1]]}))
    application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
    with TestClient(application.app) as client:
        yield Keyed(client, {who: key for who, (key, _) in pairs.items()})


def test_every_route_but_health_and_docs_needs_a_key(keyed):
    open_routes = {"/health", "/ready", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
    seen = set()
    for path, methods in keyed.client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            url = re.sub(r"\{.*?\}", "0", path)
            for headers in ({}, {"X-API-Key": "edits_wrong"}, {"Authorization": "Basic abc"}):
                answer = keyed.client.request(method, url, headers=headers)
                if path in open_routes:
                    assert answer.status_code == 200
                else:
                    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), url
                    assert code_of(answer.json()) == "UNAUTHORIZED"
                    assert "edits_wrong" not in answer.text
                    seen.add(path)
    assert len(seen) > 8


def test_another_tenants_request_is_not_there(keyed, make_body):
    request_id = submit(keyed.client, make_body(), **keyed.key("red"))
    bearer = {"Authorization": f"Bearer {keyed.key('red')['X-API-Key']}"}
    assert keyed.client.get(f"/v1/requests/{request_id}/status", headers=bearer).status_code == 200
    assert keyed.get(f"/v1/requests/{request_id}/status", "operator")["request_id"] == request_id
    routes = [("GET", part) for part in ("/status", "/result", "/events", "/images/0", "/images/0/preview")]
    for method, part in [*routes, ("DELETE", ""), ("DELETE", "?purge=true"), ("POST", "/cancel")]:
        answer = keyed.client.request(method, f"/v1/requests/{request_id}{part}", headers=keyed.key("blue"))
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "REQUEST_NOT_FOUND")
    assert keyed.get(f"/v1/requests/{request_id}/status", "red")["status"] != "canceled"


def test_idempotency_keys_are_each_tenants_own(keyed, make_body):
    ids = {submit(keyed.client, make_body(), **keyed.key(who), **{"Idempotency-Key": "k"}) for who in ("red", "blue")}
    assert len(ids) == 2


def test_history_tells_a_tenant_its_own_and_an_operator_all(keyed, make_body):
    ids = [submit(keyed.client, make_body(), **keyed.key(who)) for who in ("red", "blue", "red", "red")]
    red = [ids[0], ids[2], ids[3]]

    def listed(who: str, **params: object) -> list[str]:
        return [entry["request_id"] for entry in keyed.get("/v1/requests", who, **params)["requests"]]

    assert listed("red") == red[::-1]
    assert listed("red", tenant="blue") == red[::-1]
    assert listed("operator") == ids[::-1]
    assert listed("operator", tenant="blue") == [ids[1]]
    assert listed("red", lora="job/lora.safetensors", model="qwen_image_edit") == red[::-1]
    assert listed("red", lora="another") == []
    assert listed("red", until="2020-01-01T00:00:00Z") == []
    page = keyed.get("/v1/requests", "red", limit=2)
    rest = keyed.get("/v1/requests", "red", limit=2, cursor=page["next_cursor"])
    assert [e["request_id"] for e in page["requests"] + rest["requests"]] == red[::-1]
    assert rest["next_cursor"] is None
    for cursor in ("x", "eCB5", "AAAA"):
        assert keyed.client.get(f"/v1/requests?cursor={cursor}", headers=keyed.key("red")).status_code == 400


def test_usage_is_summed_by_tenant(keyed, make_body):
    for who in ("red", "blue"):
        keyed.client.post("/v1/inference?wait=10", json=make_body(), headers=keyed.key(who))
    # An instant edit says that it took a second.
    assert keyed.get("/v1/usage", "red")["usage"] == [{"tenant": "red", "gpu_seconds": 1.0, "images": 1}]
    assert [entry["tenant"] for entry in keyed.get("/v1/usage", "operator")["usage"]] == ["blue", "red"]


async def test_webhook_is_signed_and_tells_the_result(config, make_body, web_server):
    received = []

    async def receive(request):
        received.append((dict(request.headers), await request.text()))
        return web.Response()

    url = await web_server(receive)
    webhooks = WebhooksConfig(secret=SecretStr(SECRET), allow_private_addresses=True)
    application = Application(config.model_copy(update={"webhooks": webhooks}))

    def use_it() -> dict:
        with TestClient(application.app) as client:
            events = ["started", "image", "succeeded"]
            result = finished(client, make_body() | {"webhook_url": f"{url}/hook", "webhook_events": events})
            deadline = time.monotonic() + 10
            while len(received) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            return result

    result = await asyncio.to_thread(use_it)
    bodies = {body["type"]: body for body in (Webhook(SECRET).verify(text, headers) for headers, text in received)}
    assert set(bodies) == {"request.started", "request.image", "request.succeeded"}
    assert bodies["request.succeeded"]["data"] == result
    assert bodies["request.image"]["data"]["url"] == result["outputs"]["images"][0]["url"]
    assert bodies["request.started"]["data"] == {"request_id": result["request_id"]}


@pytest.mark.parametrize("url", ["ftp://host/x", "http://user:word@host/", "not a url"])
def test_webhook_that_cannot_be_posted_to_is_refused(config, make_body, url):
    application = Application(config.model_copy(update={"webhooks": WebhooksConfig(secret=SecretStr(SECRET))}))
    with TestClient(application.app) as client:
        answer = client.post("/v1/inference", json=make_body() | {"webhook_url": url})
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "INVALID_PARAMETER")


def test_webhook_without_a_secret_is_refused(client, make_body):
    answer = client.post("/v1/inference", json=make_body() | {"webhook_url": "https://example.com/hook"})
    assert "no secret" in answer.json()["detail"]["error"]["message"]
