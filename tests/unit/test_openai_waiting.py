"""Clients that wait for OpenAI's images API: repeats of a call, connections that break, and what waiting costs."""

import asyncio
import base64
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from serve_app.config import AppConfig
from serve_app.errors import OutOfMemory
from serve_app.intake.admission.parts import NO_PARTS
from serve_app.intake.keys import new_key
from serve_app.intake.openai.calls import Call
from serve_app.intake.openai.images import EDITS as EDITS_ROUTE
from serve_app.intake.tenants import Caller
from serve_app.jobs import waiting_clients
from serve_app.schemas.openai import ImagesEdit
from serve_app.tasks import Status
from tests.unit.openai_calls import IMAGE_TEXT, PreviewingEditors, application_with_presets, data_url, form
from tests.unit.serving import Served, serving, wait_until

EDITS = "/v1/images/edits"


@pytest.fixture
def served(config: AppConfig) -> Iterator[Served]:
    with serving(application_with_presets(config)) as served:
        yield served


@pytest.fixture
def call(control_png: bytes) -> dict[str, Any]:
    return form(("model", "house-style"), ("prompt", "x"), ("image", control_png), ("size", "64x64"))


def post(served: Served, call: dict[str, Any], count: int | None = None, timeout: float = 30, **headers: str) -> Any:
    numbered = {} if count is None else {"x-stainless-retry-count": str(count)}
    headers = call["headers"] | numbered | headers
    return httpx.post(served.url + EDITS, content=call["content"], headers=headers, timeout=timeout)


def hang_up(served: Served, call: dict[str, Any], count: int | None = 0) -> None:
    """Call, and close the connection once the request is being worked on."""
    started = len(served.application.editors.tasks)
    gone = threading.Event()

    async def call_and_leave() -> None:
        async with httpx.AsyncClient() as client:
            numbered = {} if count is None else {"x-stainless-retry-count": str(count)}
            headers = call["headers"] | numbered
            calling = asyncio.create_task(
                client.post(served.url + EDITS, content=call["content"], headers=headers, timeout=30)
            )
            while not gone.is_set():
                await asyncio.sleep(0.01)
            calling.cancel()
            with suppress(asyncio.CancelledError):
                await calling

    thread = threading.Thread(target=lambda: asyncio.run(call_and_leave()))
    thread.start()
    try:
        wait_until(lambda: len(served.application.editors.tasks) > started or count)
    finally:
        gone.set()
        thread.join()


def rows(served: Served) -> list[Any]:
    """The requests in the database, oldest first."""

    async def read() -> list[Any]:
        async with served.application.service.resources.store._database.reading() as connection:
            found = sa.text(
                "SELECT id, tenant, status, attachments, departed, abandoned_at FROM requests ORDER BY created_at"
            )
            return list((await connection.execute(found)).all())

    return served.run(read())


def statuses(served: Served) -> list[str]:
    return [row.status for row in rows(served)]


def test_repeat_is_answered_with_the_request_under_way(served, call):
    served.hold_back()
    hang_up(served, call)
    wait_until(lambda: rows(served)[0].abandoned_at is not None)
    answers: list[httpx.Response] = []
    repeat = threading.Thread(target=lambda: answers.append(post(served, call, 1)))
    repeat.start()
    wait_until(lambda: rows(served)[0].attachments == 1)
    assert rows(served)[0].abandoned_at is None
    served.let_go()
    repeat.join()
    assert answers[0].json()["data"] == [{"seed": 42, "url": None, "b64_json": IMAGE_TEXT}]
    assert len(served.application.editors.tasks) == 1


def test_repeat_reaches_another_ingress(config, call):
    """As after a lost connection: the load balancer chooses anew."""
    with serving(application_with_presets(config)) as first, serving(application_with_presets(config)) as second:
        done = post(first, call, 0).json()
        assert post(second, call, 2).json()["request_id"] == done["request_id"]
    assert len(first.application.editors.tasks + second.application.editors.tasks) == 1


def test_repeat_is_recognised_by_its_fields_and_files(served, call, control_png):
    first = post(served, call, 0).json()["request_id"]
    other_boundary = form(
        ("model", "house-style"), ("prompt", "x"), ("image", control_png), ("size", "64x64"), boundary="another"
    )
    assert post(served, other_boundary, 1).json()["request_id"] == first
    other_prompt = form(("model", "house-style"), ("prompt", "y"), ("image", control_png), ("size", "64x64"))
    assert post(served, other_prompt, 1).json()["request_id"] != first
    other_file = form(("model", "house-style"), ("prompt", "x"), ("image", control_png + b"\0"), ("size", "64x64"))
    assert post(served, other_file, 1).json()["request_id"] != first


@pytest.mark.parametrize("count", ["0", "", "-1", "x", "\u0661"])
def test_call_that_is_no_repeat_is_a_new_request(served, call, count):
    first = post(served, call, 0).json()["request_id"]
    headers = {"x-stainless-retry-count": count.encode()}
    second = httpx.post(served.url + EDITS, content=call["content"], headers=call["headers"] | headers, timeout=30)
    assert second.json()["request_id"] != first


def test_failed_request_is_tried_anew(served, call):
    served.application.editors.errors = [OutOfMemory("too large")]
    assert post(served, call, 0).status_code == 500
    assert post(served, call, 1).status_code == 200


def test_tenants_do_not_get_each_others_images(config, tmp_path, call):
    keys = {tenant: new_key() for tenant in ("red", "blue")}
    lines = "".join(f"  {tenant}: ['{sha256}']\n" for tenant, (_, sha256) in keys.items())
    (tmp_path / "keys.yaml").write_text(f"tenants:\n{lines}")
    keyed = AppConfig.model_validate(config.model_dump() | {"auth": {"keys_file": str(tmp_path / "keys.yaml")}})
    with serving(application_with_presets(keyed)) as served:
        ids = [
            post(served, call, count, Authorization=f"Bearer {keys[tenant][0]}").json()["request_id"]
            for count, tenant in ((0, "red"), (1, "blue"), (1, "red"), (2, "blue"))
        ]
    assert ids[0] != ids[1]
    assert ids[2:] == ids[:2]


@pytest.mark.parametrize("count", [0, None])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_request_whose_client_hung_up_is_cancelled_after_a_while(served, call, control_png, monkeypatch, stream, count):
    monkeypatch.setattr(waiting_clients, "ABANDONED_S", 1.0)
    served.hold_back()
    call = form(("model", "house-style"), ("prompt", "x"), ("image", control_png), ("stream", stream))
    hang_up(served, call, count)
    wait_until(lambda: rows(served)[0].departed is not None)
    assert statuses(served) == [Status.IN_PROGRESS]
    wait_until(lambda: statuses(served) == [Status.CANCELED])
    assert served.run(asyncio.wait_for(served.application.editors.stopped.wait(), 10))


def test_request_whose_client_waits_is_not_cancelled(served, call, monkeypatch):
    monkeypatch.setattr(waiting_clients, "ABANDONED_S", 0.0)
    served.hold_back()
    threading.Timer(2.5, served.let_go).start()
    assert post(served, call, 0).status_code == 200


def test_cancelled_request_tells_its_client(served, call):
    served.hold_back()
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(post(served, call, 0)))
    waiting.start()
    wait_until(lambda: served.application.editors.tasks)
    httpx.delete(f"{served.url}/v1/requests/{rows(served)[0].id}")
    waiting.join()
    error = answers[0].json()["error"]
    assert (answers[0].status_code, error["code"]) == (409, "REQUEST_CANCELED")
    assert answers[0].headers["x-should-retry"] == "false"


def test_call_that_waits_for_too_long_is_answered_and_its_request_goes_on(served, call, monkeypatch):
    monkeypatch.setattr("serve_app.intake.openai.calls.MAX_WAIT_S", 0.5)
    monkeypatch.setattr(waiting_clients, "ABANDONED_S", 0.0)
    served.hold_back()
    answer = post(served, call, 0)
    error = answer.json()["error"]
    [row] = rows(served)
    assert (answer.status_code, error["type"], error["code"]) == (504, "server_error", "NO_ANSWER")
    assert row.id in error["message"]
    assert "x-should-retry" not in answer.headers
    served.let_go()
    wait_until(lambda: statuses(served) == [Status.SUCCEEDED])
    assert post(served, call, 1).json()["request_id"] == row.id


@pytest.mark.parametrize("kind", ["form", "json"])
async def test_call_that_waits_keeps_no_copy_of_its_body(config, control_png, kind):
    """Of an image of 15 MB nothing is left while its request waits."""
    application = application_with_presets(config)
    application.editors.gate.clear()
    fields = {"model": "house-style", "prompt": "x", "size": "64x64"}
    image = control_png + bytes(15_000_000)
    if kind == "form":
        call = form(*fields.items(), ("image", image), ("unheard_of", bytes(1_000_000)))
    else:
        body = json.dumps(fields | {"image": data_url(image)}).encode()
        call = {"content": body, "headers": {"content-type": "application/json"}}
        del body
    content, headers = iter([call.pop("content")]), call["headers"]
    del image

    async def sent() -> AsyncIterator[bytes]:
        for part in content:
            yield part
            del part

    tracemalloc.start()
    try:
        async with (
            application.service.running(),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(application.app), base_url="http://edits.example", timeout=30
            ) as client,
        ):
            waiting = asyncio.create_task(client.post(EDITS, content=sent(), headers=headers))
            memory = application.service.resources.body_memory
            async with asyncio.timeout(20):
                while not application.editors.tasks or memory.held:
                    assert not waiting.done(), waiting.result().text
                    await asyncio.sleep(0.01)
            held, _ = tracemalloc.get_traced_memory()
            application.editors.gate.set()
            assert (await waiting).status_code == 200
    finally:
        tracemalloc.stop()
    assert held < 10_000_000


@pytest.mark.parametrize("kind", ["form", "json"])
def test_call_that_waits_holds_no_memory_for_its_body(served, control_png, kind):
    served.hold_back()
    fields = {"model": "house-style", "prompt": "x", "size": "64x64"}
    body = form(*fields.items(), ("image", control_png)) if kind == "form" else None
    body = body or {"json": fields | {"image": data_url(control_png)}}
    waiting = threading.Thread(target=lambda: httpx.post(served.url + EDITS, timeout=30, **body))
    waiting.start()
    wait_until(lambda: served.application.editors.tasks)
    wait_until(lambda: served.application.service.resources.body_memory.held == 0)
    assert served.application.service.resources.image_memory.held == 0
    served.let_go()
    waiting.join()


def test_full_queue_says_when_to_come_again(config, call):
    tight = config.model_copy(update={"jobs": config.jobs.model_copy(update={"max_queued": 1})})
    with serving(application_with_presets(tight)) as served, ExitStack() as stack:
        served.hold_back()
        served.application.running = dict.fromkeys(served.application.running, 0)
        client = stack.enter_context(httpx.Client(timeout=0.5))
        with suppress(httpx.ReadTimeout):
            client.post(served.url + EDITS, content=call["content"], headers=call["headers"])
        wait_until(lambda: statuses(served) == [Status.IN_QUEUE])
        refused = post(served, call, 0)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "QUEUE_FULL")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) > 0


def test_silent_stream_gives_signs_of_life(served, control_png, monkeypatch):
    monkeypatch.setattr("serve_app.intake.openai.stream.SILENCE_S", 0.3)
    served.hold_back()
    call = form(("model", "house-style"), ("prompt", "x"), ("image", control_png), ("stream", "true"))
    with httpx.stream("POST", served.url + EDITS, timeout=30, **call) as answer:
        lines = answer.iter_lines()
        comments = [next(lines) for _ in range(4)]
        assert [line for line in comments if line] == [": the request is under way"] * 2
        served.let_go()
        assert any(line == "event: image_edit.completed" for line in lines)


@pytest.mark.parametrize(("asked", "seen"), [(0, []), (1, [6]), (2, [4, 8]), (3, [3, 6, 9])])
def test_partial_images_are_spread_over_the_steps(served, control_png, monkeypatch, asked, seen):
    monkeypatch.setattr("serve_app.intake.openai.stream.PREVIEWS_S", 0.05)
    served.application.editors.edit = PreviewingEditors(served.application).edit
    fields = {"model": "house-style", "prompt": "x", "stream": "true", "partial_images": str(asked), "steps": "12"}
    call = form(*fields.items(), ("image", control_png), ("size", "64x64"))
    with httpx.stream("POST", served.url + EDITS, timeout=30, **call) as answer:
        data = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]
    *partial, completed = data
    assert (completed["type"], completed["b64_json"]) == ("image_edit.completed", IMAGE_TEXT)
    assert [event["type"] for event in partial] == ["image_edit.partial_image"] * asked
    assert [event["partial_image_index"] for event in partial] == list(range(asked))
    for event, step in zip(partial, seen, strict=True):
        # The newest preview is that of the step, or of the next one on a busy machine.
        assert step <= int(base64.b64decode(event["b64_json"])) <= step + 2
        assert (event["size"], event["output_format"], event["quality"]) == ("64x64", "jpeg", "high")
        assert event["created_at"]


async def test_client_that_goes_while_its_request_is_committed_has_hung_up(config, control_png):
    """Serve cancels what it runs for a client that is gone, also before the request is there."""
    service = application_with_presets(config).service
    submit, committed, go_on = service.submissions.submit, asyncio.Event(), asyncio.Event()

    async def submit_slowly(*args: Any, **kwargs: Any) -> Any:
        done = await submit(*args, **kwargs)
        committed.set()
        await go_on.wait()
        return done

    service.submissions.submit = submit_slowly
    fields = ImagesEdit(prompt="x", model="house-style", image=[data_url(control_png)])
    async with service.running():
        submitting = asyncio.create_task(
            service.openai_calls.submit(Call(EDITS_ROUTE, fields, NO_PARTS, None), Caller(), "")
        )
        await committed.wait()
        submitting.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([submitting])
        assert submitting.cancelled()
        async with service.resources.store._database.reading() as connection:
            [row] = (await connection.execute(sa.text("SELECT departed FROM requests"))).all()
    assert row.departed == "[0]"
