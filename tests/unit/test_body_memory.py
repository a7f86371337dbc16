"""The memory of request bodies: it is taken before a body is read, at once or not at all."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.api.bodies import limits
from serve_app.api.bodies.json_bodies import BYTES_PER_VALUE, JsonRequest
from serve_app.api.bodies.limits import COPIES, MAX_BODIES, SMALL_BODY, BodyLimit
from serve_app.api.middleware import AnswerErrors
from serve_app.concurrency.budget import Budget
from serve_app.intake.tenants import Caller

CHUNKED = None
# As large as only one large body may be, which leaves a quarter to small ones.
LARGE = 4 * SMALL_BODY


class Bodies:
    """An application behind BodyLimit, and requests to it that send their bodies as the test says.

    `seen` is what each body held when its route had it; `asked` counts the parts of bodies that were asked for.
    """

    def __init__(self, total: int, share: int | None = None, max_bytes: int = LARGE, timeout_s: float = 60) -> None:
        self.memory = Budget(total, share or total, 0.0, "this body")
        self.asked = 0
        self.seen: list[int] = []
        self.done = asyncio.Event()
        self.done.set()
        self.app = AnswerErrors(BodyLimit(self._application, self.memory, max_bytes, timeout_s))

    async def _application(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        while (await receive()).get("more_body"):
            pass
        self.seen.append(self.memory.held)
        await self.done.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def request(
        self, *parts: bytes, tenant: str = "red", length: int | None, pause_s: float = 0.0, silent: bool = False
    ) -> int:
        """The status of the answer. A `silent` sender's last part never comes."""
        statuses: list[int] = []
        left = list(parts)

        async def receive() -> dict[str, Any]:
            self.asked += 1
            await asyncio.sleep(30 if silent and len(left) == 1 else pause_s)
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        header = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", str(length).encode())
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "state": {"caller": Caller(tenant)},
            "headers": [header],
        }
        await self.app(scope, receive, send)
        return statuses[0]

    def silent(self, length: int, tenant: str = "red") -> "asyncio.Task[int]":
        """A request whose body is announced and does not come."""
        return asyncio.create_task(self.request(b"", length=length, tenant=tenant, silent=True))


async def end(*tasks: "asyncio.Task[int]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_body_that_finds_no_memory_is_refused_at_once_and_not_read():
    """While it waited, Serve would receive all of it."""
    app = Bodies(total=COPIES * 100)
    slow = app.silent(100)
    await asyncio.sleep(0)
    asked = app.asked
    answers = await asyncio.wait_for(asyncio.gather(*(app.request(bytes(100), length=100) for _ in range(50))), 5)
    assert (set(answers), app.asked) == ({503}, asked)
    assert (await app.request(b"", length=0)) == 200
    await end(slow)
    assert await app.request(bytes(100), length=100) == 200
    assert app.memory.held == 0


async def test_full_memory_of_a_service_is_a_503_at_once(application, client):
    service = application.service
    with service.resources.body_memory.hold("") as hold:
        hold.take_now(service.resources.body_memory.total)
        answer = await asyncio.to_thread(client.post, "/v1/inference", json={})
        cancel = await asyncio.to_thread(client.post, f"/v1/requests/{'0' * 32}/cancel")
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (503, "OVERLOADED")
    # It has no body.
    assert cancel.status_code == 404


async def test_bodies_that_do_not_arrive_leave_room_for_other_tenants():
    app = Bodies(total=4 * COPIES * 100, share=2 * COPIES * 100)
    slow = [app.silent(100) for _ in range(2)]
    await asyncio.sleep(0)
    assert await app.request(bytes(100), length=100, tenant="blue") == 200
    assert await app.request(bytes(100), length=100) == 503
    await end(*slow)
    assert app.memory.held == 0
    assert await app.request(bytes(100), length=100) == 200


async def test_large_bodies_of_a_service_without_keys_leave_room_for_small_ones():
    app = Bodies(total=3 * COPIES * LARGE)
    slow = [app.silent(LARGE) for _ in range(10)]
    await asyncio.sleep(0.01)
    assert [task.done() for task in slow].count(False) == 2
    assert await app.request(bytes(SMALL_BODY), length=SMALL_BODY) == 200
    assert await app.request(bytes(100), length=CHUNKED) == 200
    await end(*slow)


async def test_small_memory_takes_the_largest_body_alone():
    app = Bodies(total=COPIES * LARGE // 2)
    assert await app.request(bytes(LARGE), length=LARGE) == 200
    assert app.seen == [app.memory.total * 3 // 4]


async def test_body_of_unknown_length_gets_memory_as_it_arrives():
    app = Bodies(total=100 * COPIES * LARGE)
    app.done.clear()
    small = asyncio.create_task(app.request(bytes(5), bytes(6), length=CHUNKED))
    await asyncio.sleep(0.01)
    # Room for as much as is not known to be large was taken, and given back when the body was there.
    assert app.seen == [COPIES * 11]
    large = asyncio.create_task(app.request(*[bytes(SMALL_BODY)] * 4, length=CHUNKED))
    await asyncio.sleep(0.1)
    assert app.seen == [COPIES * 11, COPIES * (11 + LARGE)]
    app.done.set()
    await asyncio.gather(small, large)
    assert app.memory.held == 0


async def test_body_of_unknown_length_ends_where_the_memory_does():
    app = Bodies(total=2 * COPIES * LARGE)
    slow = app.silent(LARGE)
    await asyncio.sleep(0)
    assert await app.request(*[bytes(SMALL_BODY)] * 4, length=CHUNKED) == 503
    assert await app.request(bytes(SMALL_BODY), length=CHUNKED) == 200
    await end(slow)
    assert app.memory.held == 0


class JsonBodies(Bodies):
    """Bodies of which the application reads JSON."""

    async def _application(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        await JsonRequest(scope, receive).prepare()
        await super()._application(scope, nothing_more, send)


async def nothing_more() -> dict[str, Any]:
    return {}


async def test_memory_of_parsed_values_counts():
    app = JsonBodies(total=10_000_000)
    assert await app.request(b'{"x":[{},{},{}]}', length=16) == 200
    assert app.seen == [COPIES * 16 + BYTES_PER_VALUE * 7]
    many = b"[" + b"{}," * 50_000
    answers = await asyncio.gather(*(app.request(many, length=len(many)) for _ in range(2)))
    assert sorted(answers) == [200, 503]


async def test_large_body_must_arrive_fast_enough_to_be_complete_in_time(monkeypatch):
    """At the rate of a small one it would hold its memory for the whole time and still not be here."""
    monkeypatch.setattr(limits, "GRACE_S", 0.1)
    monkeypatch.setattr(limits, "MIN_BYTES_PER_S", 1)
    app = Bodies(total=10 * COPIES * LARGE, timeout_s=20)
    # A hundred times as fast as any body must come, and a twentieth of what this one has to.
    slow = app.request(*[b"x" * 500] * 1000, length=LARGE, pause_s=0.05)
    assert await asyncio.wait_for(slow, 10) == 408
    assert app.asked < 100


@pytest.mark.parametrize(("length", "status"), [(0, 200), (101, 413), (int("9" * 30), 413)])
async def test_requests_without_a_body_and_those_that_are_refused_for_it_need_no_memory(length, status):
    app = Bodies(total=COPIES * 100, max_bytes=100)
    with app.memory.hold("red") as hold:
        hold.take_now(COPIES * 100)
        assert await app.request(b"", length=length) == status


async def test_tenant_of_a_service_without_keys_gets_every_slot():
    app = Bodies(total=10_000_000)
    slow = [app.silent(10) for _ in range(MAX_BODIES + 1)]
    await asyncio.wait(slow, timeout=1)
    assert [task.done() for task in slow].count(False) == MAX_BODIES
    await end(*slow)
