"""Random requests and files at a size that fits here; `make fuzz` sends far more of the same.

Every answer is one that the OpenAPI document describes, none is an error of the service, and nothing is logged as one.
"""

import json
import logging
import re

import pytest

from serve_app.api.bodies import BodyRoute
from tests.conformity import JSON, Document
from tests.fuzzing.asgi import Answer, HttpRequest, send
from tests.fuzzing.checks import LoggedErrors, problems
from tests.fuzzing.images import fuzz_images
from tests.fuzzing.recipes import TOKEN
from tests.fuzzing.requests import fuzz_requests
from tests.fuzzing.safetensors_files import fuzz_safetensors
from tests.fuzzing.schema_cases import fuzz_by_schema
from tests.fuzzing.tally import Tally
from tests.unit.conftest import SHARES_AN_APPLICATION, Application
from tests.unit.test_openapi import operations

pytestmark = [SHARES_AN_APPLICATION, pytest.mark.filterwarnings("ignore")]

# Each of them is another set of inputs.
SEED = 24


def test_mutated_requests_are_never_an_error_of_the_service():
    tally = fuzz_requests(400, SEED + 1)
    assert tally.faults == []
    assert tally.inputs == 400
    # They come as far as each of these.
    assert {"200", "400", "401", "403", "404", "405", "422"} <= tally.outcomes.keys()


def test_mutated_requests_to_a_service_without_keys_are_never_an_error_of_the_service():
    tally = fuzz_requests(150, SEED)
    assert tally.faults == []
    assert {"200", "400", "404", "422"} <= tally.outcomes.keys()
    assert "401" not in tally.outcomes


def test_requests_by_schema_are_never_an_error_of_the_service():
    tally = fuzz_by_schema(1, SEED)
    assert tally.faults == []
    assert tally.inputs > 70
    assert {"200", "400", "404", "422"} <= tally.outcomes.keys()


def test_mutated_images_neither_end_a_decoder_nor_take_long():
    tally = fuzz_images(500, SEED)
    assert tally.faults == []
    assert {"refused", "decoded as png", "decoded as jpeg", "decoded as tiff"} <= tally.outcomes.keys()


def test_mutated_lora_files_are_refused_or_fit():
    tally = fuzz_safetensors(1_500, SEED)
    assert tally.faults == []
    assert {"fits", "LORA_INVALID_FILE", "LORA_INCOMPATIBLE"} <= tally.outcomes.keys()


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    media_type = {} if isinstance(body, bytes) else {"content-type": JSON}
    return Answer(
        status, media_type | {name.replace("_", "-"): text for name, text in headers.items()}, bytearray(data), True
    )


def error(code: str) -> dict:
    return {"detail": {"error": {"code": code, "message": "one sentence", "details": {}}}}


def document_of(application: Application) -> Document:
    """The one of all applications, whose validators other tests have made already."""
    assert application.document is not None
    return application.document


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (answer(500, error("INTERNAL_ERROR")), "an error of the service"),
        (answer(503, error("STORE_UNAVAILABLE"), retry_after="2"), "an error of the service"),
        (answer(503, error("OVERLOADED")), "an error of the service"),
        (answer(429, error("QUEUE_FULL")), "429 without Retry-After"),
        (answer(400, {"detail": TOKEN}), "repeats a token"),
        (answer(400, {"detail": "There was an error parsing the body"}), r"\$\.detail"),
        (answer(418, b""), "is not listed"),
        (Answer(), "no answer"),
    ],
)
def test_answer_that_must_not_be_is_a_fault(application, wrong, what):
    request = HttpRequest("submit", "POST", "/v1/inference")
    found = list(problems(document_of(application), request, wrong))
    assert any(re.search(what, problem) for problem in found), found


def test_answer_of_a_service_that_protects_itself_is_none(application):
    request = HttpRequest("submit", "POST", "/v1/inference")
    overloaded = answer(503, error("OVERLOADED"), retry_after="5")
    assert list(problems(document_of(application), request, overloaded)) == []


def test_answer_that_its_client_left_is_none(application):
    request = HttpRequest("health", "GET", "/health")
    left = Answer(200, {"content-type": JSON}, bytearray(b'{"status": "o'), ended=False)
    assert list(problems(document_of(application), request, left)) == []


def test_logged_errors_and_exceptions_are_faults():
    with LoggedErrors() as logged:
        logging.getLogger("serve_app").warning("busy")
        logging.getLogger("serve_app").error("broken")
        try:
            raise ValueError("quiet")
        except ValueError:
            logging.getLogger("asyncio").warning("caught", exc_info=True)
    assert [text.splitlines()[0] for text in logged.found] == ["broken", "caught"]


def test_runs_add_up_in_a_file(tmp_path):
    file = tmp_path / "folder" / "sum.json"
    for seed in (0, 1):
        tally = Tally.read(file)
        tally += Tally(inputs=2, rounds=1, next_seed=seed + 1, seconds=1.0, outcomes={"200": 2})
        tally.write(file)
    read = Tally.read(file)
    assert (read.inputs, read.rounds, read.next_seed, read.outcomes["200"]) == (4, 2, 2, 4)


def test_every_route_that_takes_json_reads_it_by_the_service_s_own_reader(application):
    """FastAPI's own reader answers a body that is not UTF-8, or nested too deep, with an error of another shape."""
    with_json = {
        name
        for name, operation in operations(application.app.openapi())
        if JSON in operation.get("requestBody", {}).get("content", {})
    }
    routes = {
        f"{method} {route.path_format.replace(':path', '')}"
        for route in application.app.routes
        if isinstance(route, BodyRoute)
        for method in route.methods
    }
    assert with_json
    assert with_json <= routes


@pytest.mark.parametrize("content", [b'{"step": "\xff"}', b"[" * 100_000, b'{"step": ' + b"9" * 5_000 + b"}"])
def test_unreadable_body_of_previews_is_answered_with_the_reason(client, content):
    found = client.post("/v1/training-jobs/job/previews", content=content, headers={"content-type": JSON})
    assert (found.status_code, found.json()["detail"][0]["type"]) == (422, "json_invalid")


@pytest.mark.parametrize("headers", [(), ((b"content-length", b"0"),)])
def test_body_that_no_header_announces_is_not_read(client, application, headers):
    """HTTP/1.1 has none then. A server that hands one over must not get around the limits of memory."""
    request = HttpRequest(
        "submit", "POST", "/v1/inference", headers=((b"host", b"test"), *headers), body=b'{"model": "x"}'
    )
    found = client.portal.call(send, application.app, request)
    assert found.status == 422
    assert json.loads(found.body)["detail"] == [{"type": "missing", "loc": ["body"], "msg": "Field required"}]
