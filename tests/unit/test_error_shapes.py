"""A group of routes can answer its errors in a shape of its own, wherever on the way to a route they happen."""

from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.testclient import TestClient

from serve_app.api.bodies.json_bodies import JsonRoute
from serve_app.api.error_answers import error_docs
from serve_app.api.error_shapes import ErrorShape, Fault
from serve_app.errors import ErrorDescription, QueueFull
from serve_app.intake.keys import new_key
from tests.unit.conftest import Application


class OtherError(BaseModel):
    error: dict[str, Any]


def other_body(description: ErrorDescription) -> dict[str, Any]:
    return {"error": {"type": description.code.lower(), "message": description.message}}


def other_faults(faults: Sequence[Fault]) -> dict[str, Any]:
    return {"error": {"type": "invalid_request", "message": faults[0]["msg"]}}


OTHER = ErrorShape(OtherError, other_body, other_faults, faults_status=400)


class OtherRoute(JsonRoute):
    error_shape = OTHER


class Item(BaseModel):
    n: int


def other_routes() -> APIRouter:
    routes = APIRouter(route_class=OtherRoute)

    @routes.post("/other", responses=error_docs(QueueFull, shape=OTHER))
    async def other(item: Item) -> Item:
        if item.n > 9:
            raise QueueFull("the queue is full")
        raise ZeroDivisionError

    return routes


@pytest.fixture
def application(config, tmp_path) -> Application:
    _, sha256 = KEY
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"tenants: {{acme: ['{sha256}']}}")
    changes = {"auth": {"keys_file": str(keys)}, "max_body_bytes": 1000}
    application = Application(type(config).model_validate(config.model_dump() | changes))
    application.app.routes.extend(other_routes().routes)
    return application


KEY = new_key()


@pytest.mark.parametrize(
    ("body", "status", "type_"),
    [
        ({"n": 10}, 429, "queue_full"),
        ({"n": 1}, 500, "internal_error"),
        ({"n": "x"}, 400, "invalid_request"),
        ({"n": 1, "more": "x" * 1000}, 413, "body_too_large"),
    ],
)
def test_errors_of_a_group_have_its_shape(application, body, status, type_):
    with TestClient(application.app, raise_server_exceptions=False) as client:
        answer = client.post("/other", json=body, headers={"X-API-Key": KEY[0]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, type_)
    assert answer.headers.get("retry-after") == ("10" if status == 429 else None)


def test_errors_before_and_in_the_router_have_the_groups_shape(application):
    with TestClient(application.app) as client:
        assert client.post("/other", json={}).json()["error"]["type"] == "unauthorized"
        answer = client.get("/other", headers={"X-API-Key": KEY[0]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_other_groups_and_unknown_paths_keep_the_contracts_shape(application):
    with TestClient(application.app) as client:
        for path in ("/v1/models", "/nowhere"):
            assert client.get(path).json()["detail"]["error"]["code"] == "UNAUTHORIZED"
        answer = client.get("/nowhere", headers={"X-API-Key": KEY[0]})
        assert answer.json()["detail"]["error"]["code"] == "NOT_FOUND"
        shown = client.get("/openapi.json").json()["paths"]["/other"]["post"]["responses"]["429"]
    assert shown["content"]["application/json"]["schema"]["$ref"].endswith("/OtherError")
    assert shown["content"]["application/json"]["examples"]["QUEUE_FULL"]["value"]["error"]["type"] == "queue_full"
