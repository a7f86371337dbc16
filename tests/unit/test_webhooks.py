"""Webhooks: signed, delivered at least once, fair between receivers, and never to where they must not go."""

import asyncio
import json
import signal
import sys
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from serve_app.config import WebhooksConfig
from serve_app.jobs.records import Delivery
from serve_app.workers import webhooks
from tests.conftest import ROOT
from tests.unit.conftest import ON_BOTH_DATABASES
from tests.unit.receivers import (
    SECRET,
    Receiver,
    all_failed,
    all_settled,
    announce,
    delivering,
    holds,
    make_due,
    payload,
    rows,
    until,
)

pytestmark = ON_BOTH_DATABASES


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_S", 0.02)


async def test_what_arrives_is_signed_and_says_what_happened(store, make_plan, web_server):
    receiver = Receiver()
    id_ = await announce(store, make_plan, await web_server(receiver.answer) + "/hook?token=1")
    async with delivering(store):
        await until(lambda: all_settled(store))
    [row] = await rows(store)
    [(headers, body)] = receiver.posts
    message = Verifier(SECRET).verify(body, headers)
    assert set(message) == {"type", "timestamp", "data"}
    assert (message["type"], message["data"]) == ("request.canceled", {"request_id": id_})
    assert message["timestamp"].endswith("Z")
    assert abs(datetime.fromisoformat(message["timestamp"]).timestamp() - row.created_at) < 1e-3
    assert abs(datetime.now(UTC).timestamp() - row.created_at) < 60
    assert headers["webhook-id"] == row.id
    assert headers["Content-Type"] == "application/json"
    assert (row.attempts, row.error) == (1, None)
    assert row.delivered_at >= row.created_at
    for forged in (body.replace(b"canceled", b"succeeded"), body + b" "):
        with pytest.raises(WebhookVerificationError):
            Verifier(SECRET).verify(forged, headers)


async def test_failed_attempt_is_made_again_later_under_the_same_id(store, make_plan, web_server):
    receiver = Receiver()
    receiver.statuses = [500, 302, 404]
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store):
        for attempt, (status, delay) in enumerate(((500, 5), (302, 10), (404, 20)), 1):

            async def failed(attempt=attempt, status=status) -> bool:
                [row] = await rows(store)
                return (row.attempts, row.error) == (attempt, f"its server answered {status}")

            await until(failed)
            [row] = await rows(store)
            assert 0.75 * delay - 2 < row.due_in < 1.25 * delay
            await asyncio.sleep(0.1)
            assert len(receiver.posts) == attempt
            await make_due(store)
        await until(lambda: all_settled(store))
    [row] = await rows(store)
    assert (row.attempts, row.error) == (4, None)
    assert row.delivered_at is not None
    assert receiver.ids == [row.id] * 4
    for headers, body in receiver.posts:
        Verifier(SECRET).verify(body, headers)


async def test_redirect_is_not_followed(store, make_plan, web_server):
    paths = []

    async def redirect(request: web.Request) -> web.Response:
        paths.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    await announce(store, make_plan, await web_server(redirect) + "/hook")
    async with delivering(store, max_attempts=1):
        await until(lambda: all_settled(store))
    assert paths == ["/hook"]


async def test_receiver_that_answers_gone_is_not_tried_again(store, make_plan, web_server):
    receiver = Receiver()
    receiver.statuses = [410]
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store):
        await until(lambda: all_settled(store))
    [row] = await rows(store)
    assert (row.attempts, row.error, row.delivered_at) == (1, "its server answered 410", None)


async def test_the_last_attempt_is_the_last_and_its_error_is_kept(store, make_plan, web_server):
    receiver = Receiver()
    receiver.statuses = [503] * 9
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, max_attempts=3):
        for attempt in (1, 2):

            async def failed(attempt=attempt) -> bool:
                [row] = await rows(store)
                # One that is under way is not due before its lease has run out.
                return row.attempts == attempt and 1 < row.due_in < webhooks.RECORDING_S

            await until(failed)
            await make_due(store)
        await until(lambda: all_settled(store))
    [row] = await rows(store)
    assert (row.attempts, row.error, row.delivered_at) == (3, "its server answered 503", None)
    assert len(receiver.posts) == 3


async def test_private_address_is_refused_unless_the_webhooks_own_config_allows_it(store, make_plan, web_server):
    receiver = Receiver()
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, allowed_networks=[], max_attempts=1):
        await until(lambda: all_settled(store))
    [row] = await rows(store)
    assert "not a public one" in row.error
    assert receiver.posts == []
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, allowed_networks=[], allow_private_addresses=True):
        await until(lambda: all_settled(store))
    assert len(receiver.posts) == 1


async def test_receiver_that_takes_too_long_is_tried_again_later(store, make_plan, web_server):
    receiver = Receiver()
    receiver.gate.clear()
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, timeout_s=0.2, max_attempts=1):
        await until(lambda: all_settled(store))
    assert (await rows(store))[0].error == "its server took longer than 0.2 s"


async def test_dead_receiver_with_many_deliveries_holds_up_no_other(store, make_plan, web_server):
    dead, alive = Receiver(), Receiver()
    dead.gate.clear()
    dead_url, alive_url = await web_server(dead.answer), await web_server(alive.answer)
    for number in range(100):
        await announce(store, make_plan, f"{dead_url}/{number}")
    async with delivering(store):
        await until(lambda: holds(len(dead.posts) >= webhooks.PER_HOST))
        for _ in range(3):
            await announce(store, make_plan, alive_url)
        started = time.monotonic()
        await until(lambda: holds(len(alive.posts) == 3))
        assert time.monotonic() - started < 2
        assert len(dead.posts) < 2 * webhooks.PER_HOST


async def test_more_dead_receivers_than_posts_at_a_time_still_leave_room(
    store, make_plan, web_server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(webhooks, "CONCURRENCY", 6)
    dead, alive = [Receiver() for _ in range(5)], Receiver()
    for receiver in dead:
        receiver.gate.clear()
        url = await web_server(receiver.answer)
        for _ in range(10):
            await announce(store, make_plan, url)
    await announce(store, make_plan, await web_server(alive.answer))
    # The living one answers late too: a free place would go to a second post of a dead one before this test looks.
    alive.gate.clear()
    async with delivering(store):
        # The oldest of each of the six goes first, though this one is the youngest of all.
        await until(lambda: holds(len(alive.posts) == 1), 2)
        # None of the dead ones has answered, and none has a second post at a time.
        assert [len(receiver.posts) for receiver in dead] == [1] * len(dead)
        alive.gate.set()


async def test_deliverers_share_a_queue_and_deliver_once(store, make_plan, web_server):
    receiver = Receiver()
    url = await web_server(receiver.answer)
    ids = [await announce(store, make_plan, url) for _ in range(40)]
    async with delivering(store), delivering(store), delivering(store):
        await until(lambda: all_settled(store))
    assert sorted(json.loads(body)["data"]["request_id"] for _, body in receiver.posts) == sorted(ids)
    assert len(set(receiver.ids)) == 40


# A service that is killed while its webhook is with the receiver, which has it and will say so.
DELIVER = """
import asyncio, sys
from pydantic import SecretStr
from serve_app.config import JobsConfig, WebhooksConfig
from serve_app.jobs.store import JobStore
from serve_app.workers.webhooks import Deliverer

async def payload(delivery):
    return {"request_id": delivery.request_id}

async def main():
    store = JobStore(JobsConfig(database_url=sys.argv[1]))
    await store.open()
    config = WebhooksConfig(secret=SecretStr(sys.argv[2]), allow_private_addresses=True)
    await Deliverer(store.webhooks, config, payload).run()

asyncio.run(main())
"""


async def test_process_that_is_killed_between_post_and_record_delivers_again(
    store, database_url, make_plan, web_server
):
    receiver = Receiver()
    receiver.gate.clear()
    await announce(store, make_plan, await web_server(receiver.answer))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DELIVER, database_url, SECRET, cwd=ROOT)
    try:
        await until(lambda: holds(len(receiver.posts) == 1), 60)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    receiver.gate.set()
    [row] = await rows(store)
    # Nobody takes it before its lease has run out.
    assert (row.attempts, row.delivered_at) == (1, None)
    assert 0 < row.due_in < 10 + webhooks.RECORDING_S
    async with delivering(store):
        await asyncio.sleep(0.2)
        assert len(receiver.posts) == 1
        await make_due(store)
        await until(lambda: all_settled(store))
    assert receiver.ids == [row.id] * 2
    assert (await rows(store))[0].attempts == 2


async def test_attempts_without_an_outcome_count_too(store, make_plan, web_server):
    receiver = Receiver()
    await announce(store, make_plan, await web_server(receiver.answer))
    for _ in range(2):
        assert len(await store.webhooks.take(1, 0.0, 1)) == 1
        await asyncio.sleep(0.01)
    async with delivering(store, max_attempts=2):
        await until(lambda: all_settled(store))
    assert receiver.posts == []
    assert (await rows(store))[0].error == "no attempt finished"


async def test_payload_is_asked_at_each_attempt_and_none_drops_the_delivery(store, make_plan, web_server):
    receiver = Receiver()
    answers: list[dict[str, Any] | None] = [{"step": 1}, None]
    receiver.statuses = [500]

    async def payload(delivery: Delivery) -> dict[str, Any] | None:
        return answers.pop(0)

    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, payload):
        await until(lambda: holds(len(answers) == 1))
        await until(lambda: all_failed(store))
        await make_due(store)
        await until(lambda: all_settled(store))
    assert [json.loads(body)["data"] for _, body in receiver.posts] == [{"step": 1}]


async def test_payload_that_cannot_be_made_leaves_the_delivery_for_later(store, make_plan, web_server):
    receiver = Receiver()
    asked = []

    async def payload(delivery: Delivery) -> dict[str, Any] | None:
        asked.append(delivery.id)
        if len(asked) == 1:
            raise RuntimeError("the store is away")
        return {}

    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, payload):
        await until(lambda: holds(len(asked) == 1))
        assert not await all_settled(store)
        await make_due(store)
        await until(lambda: all_settled(store))
    assert len(receiver.posts) == 1


@pytest.mark.parametrize(
    "url", ["http://a.example/x", "HTTPS://User.Example:8443", "http://[::1]:80/a/b", "https://a.example?x=/"]
)
async def test_database_and_code_agree_on_the_host_of_a_url(store, make_plan, url):
    await announce(store, make_plan, url)
    [delivery] = await store.webhooks.take(9, 0.0, 9)
    await asyncio.sleep(0.01)
    assert await store.webhooks.take(9, 0.0, 9, [delivery.host]) == []
    assert len(await store.webhooks.take(9, 0.0, 9, [delivery.host + "x"])) == 1


async def test_receiver_in_a_denied_network_is_refused(store, make_plan, web_server):
    receiver = Receiver()
    await announce(store, make_plan, await web_server(receiver.answer))
    async with delivering(store, denied_networks=["127.0.0.0/8"]):
        await until(lambda: all_failed(store))
    [row] = await rows(store)
    assert ("not a public one" in row.error, receiver.posts) == (True, [])


async def test_as_many_connections_are_open_as_posts_may_be_under_way(store, monkeypatch):
    monkeypatch.setattr(webhooks, "CONCURRENCY", 100)
    deliverer = webhooks.Deliverer(store.webhooks, WebhooksConfig(secret=SecretStr(SECRET)), payload)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await deliverer.run()
    assert deliverer._fetcher._connections.total == 100
