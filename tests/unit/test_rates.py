"""Rate limits: how many requests of a tenant pass, over all ingresses, and what the others are told."""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from serve_app.config import AppConfig, AuthConfig, IngressSettings, JobsConfig
from serve_app.intake import keys
from serve_app.intake.callers.rates import BATCHES, RateKind, RateLimits
from serve_app.intake.keys import new_key
from serve_app.intake.tenants import Caller, TenantLimits
from serve_app.jobs.limits.rates import SLOT_S, WINDOW_S, WINDOW_SLOTS, Unspent, granted
from serve_app.jobs.store import JobStore
from tests.unit.conftest import ON_BOTH_DATABASES, Application

NOW = 1_800_000_000.0
SLOT = int(NOW // SLOT_S)


def test_tokens_come_back_a_minute_later_slot_by_slot():
    slots, first = granted([], NOW, 10, 6, None)
    slots, second = granted(slots, NOW + SLOT_S, 10, 6, None)
    assert (first.tokens, first.left, second.tokens, second.left) == (6, 4, 4, 0)
    slots, refused = granted(slots, NOW + WINDOW_S, 10, 6, None)
    assert (refused.tokens, refused.left) == (0, 0)
    assert refused.reset_s == pytest.approx((SLOT + WINDOW_SLOTS) * SLOT_S - NOW - WINDOW_S)
    slots, again = granted(slots, NOW + WINDOW_S + refused.reset_s, 10, 10, None)
    assert (again.tokens, again.left) == (6, 0)


def test_what_was_not_spent_is_given_back_while_it_counts():
    assert granted([(SLOT, 10)], NOW, 10, 1, Unspent(SLOT, 4))[0] == [(SLOT, 7)]
    assert granted([(SLOT, 3)], NOW, 10, 1, Unspent(SLOT, 4))[0] == [(SLOT, 1)]
    old = SLOT - WINDOW_SLOTS
    assert granted([(old, 3)], NOW, 10, 1, Unspent(old, 3))[0] == [(SLOT, 1)]


@pytest.mark.parametrize("offset_s", [0.0, 5.5])
@pytest.mark.parametrize("limit", [1, 7, 21, 61, 1000])
def test_within_any_minute_at_most_a_tenth_more_than_the_limit_passes(limit, offset_s):
    """Two ingresses at their worst: each holds a batch back to its last moment, and spends all others at once.

    Half a minute later they hold nothing back any more: then what was held back adds to all that is free.
    """
    batch = math.ceil(limit / BATCHES)
    passed: list[tuple[float, int]] = []
    held = [(0, 0.0), (0, 0.0)]
    slots: list[tuple[int, int]] = []
    for tick in range(400):
        now = NOW + offset_s + tick / 2
        for ingress in (0, 1):
            tokens, until = held[ingress]
            if tokens and now < until - 0.5:
                continue
            passed.append((now, tokens))
            slots, grant = granted(slots, now, limit, batch, None)
            # One of the batch is for the request that asked for it.
            passed.append((now, min(1, grant.tokens)))
            rest = max(0, grant.tokens - 1)
            held[ingress] = (rest, now + SLOT_S) if tick < 60 else (0, 0.0)
            passed.append((now, 0 if tick < 60 else rest))
        while (taken := granted(slots, now, limit, batch, None))[1].tokens:
            slots = taken[0]
            passed.append((now, taken[1].tokens))
    most = max(sum(n for at, n in passed if start <= at < start + WINDOW_S) for start, _ in passed)
    assert limit <= most <= limit * 1.1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def caller(**limits: Any) -> Caller:
    return Caller("acme", has_key=True, limits=TenantLimits(**limits))


@ON_BOTH_DATABASES
async def test_two_ingresses_share_a_limit_and_ask_the_database_rarely(database_url):
    stores = [JobStore(JobsConfig(database_url=database_url)) for _ in range(2)]
    for store in stores:
        await store.open()
    asked: Counter[str] = Counter()
    ingresses = [RateLimits(counting(store.rates, asked), Clock()) for store in stores]
    try:
        calls = [ingresses[n % 2].spend(caller(submits_per_minute=200), RateKind.SUBMIT) for n in range(600)]
        spent = await asyncio.gather(*calls)
        allowed = [each for each in spent if each.is_allowed]
        assert len(allowed) == 200
        assert min(each.left for each in allowed) == 0
        assert {each.left for each in spent if not each.is_allowed} == {0}
        assert asked["take"] <= BATCHES + 4
        # Another kind, and another tenant, have their own.
        assert (await ingresses[0].spend(caller(reads_per_minute=5), RateKind.READ)).left == 4
        other = Caller("blue", has_key=True, limits=TenantLimits(submits_per_minute=5))
        assert (await ingresses[0].spend(other, RateKind.SUBMIT)).is_allowed
    finally:
        for store in stores:
            await store.close()


def counting(rates: Any, asked: Counter[str]) -> Any:
    class Counting:
        async def take(self, *arguments: Any) -> Any:
            asked["take"] += 1
            return await rates.take(*arguments)

    return Counting()


async def test_a_lease_that_ends_gives_back_what_was_not_spent(database_url):
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    clock = Clock()
    limits = RateLimits(store.rates, clock)
    for spent_so_far in range(1, 6):
        spent = await limits.spend(caller(submits_per_minute=200), RateKind.SUBMIT)
        assert spent.left == 200 - spent_so_far
        clock.now += SLOT_S
    await store.close()


async def test_a_changed_limit_applies_at_once(database_url):
    store = JobStore(JobsConfig(database_url=database_url))
    await store.open()
    limits = RateLimits(store.rates, Clock())
    assert (await limits.spend(caller(submits_per_minute=1), RateKind.SUBMIT)).is_allowed
    assert not (await limits.spend(caller(submits_per_minute=1), RateKind.SUBMIT)).is_allowed
    assert (await limits.spend(caller(submits_per_minute=2), RateKind.SUBMIT)).is_allowed
    assert await limits.spend(caller(), RateKind.SUBMIT) is None
    await store.close()


@pytest.fixture
def two_ingresses(config: AppConfig, tmp_path: Path) -> Iterator[Callable[..., list[TestClient]]]:
    """Two applications over one database and one keys file, whose settings have these limits."""
    clients: list[TestClient] = []

    def start(keys_file: object, **limits: int) -> list[TestClient]:
        file = tmp_path / "keys.yaml"
        file.write_text(yaml.safe_dump(keys_file))
        for _ in range(2):
            application = Application(config.model_copy(update={"auth": AuthConfig(keys_file=str(file))}))
            application.service.reconfigure(IngressSettings.model_validate({"limits": limits}))
            clients.append(TestClient(application.app))
            clients[-1].__enter__()
        return clients

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@ON_BOTH_DATABASES
def test_a_tenant_that_floods_is_refused_and_another_is_not(two_ingresses, make_body):
    (red, red_hash), (blue, blue_hash), (boss, boss_hash) = new_key(), new_key(), new_key()
    content = {"tenants": {"red": [red_hash], "blue": [blue_hash]}, "operators": [boss_hash]}
    ingresses = two_ingresses(content, submits_per_minute=20, reads_per_minute=50)
    answers = [
        ingresses[n % 2].post("/v1/inference", json={"nothing": "right"}, headers={"X-API-Key": red}) for n in range(60)
    ]
    statuses = Counter(answer.status_code for answer in answers)
    # A body of the wrong shape counts, too.
    assert statuses[422] == 20
    assert statuses[429] == 40
    refused = answers[-1]
    error = refused.json()["detail"]["error"]
    assert error["code"] == "RATE_LIMITED"
    assert error["details"]["limit"] == 20
    assert refused.headers["Retry-After"] == str(error["details"]["retry_after_s"])
    assert 1 <= int(refused.headers["Retry-After"]) <= WINDOW_S + SLOT_S
    assert refused.headers["RateLimit-Policy"] == '"submit";q=20;w=60'
    assert re.fullmatch(r'"submit";r=0;t=\d+', refused.headers["RateLimit"])
    openai = ingresses[0].post("/v1/images/generations", json={"prompt": "x"}, headers={"X-API-Key": red})
    assert (openai.status_code, openai.json()["error"]["code"]) == (429, "RATE_LIMITED")
    assert openai.json()["error"]["type"] == "rate_limit_error"
    assert "Retry-After" in openai.headers
    # Its polls have a limit of their own, and other tenants are not concerned. Operators have no such limit.
    polled = ingresses[1].get("/v1/models", headers={"X-API-Key": red})
    assert (polled.status_code, polled.headers["RateLimit-Policy"]) == (200, '"read";q=50;w=60')
    for ingress in ingresses:
        sent = ingress.post("/v1/inference", json=make_body(), headers={"X-API-Key": blue})
        assert sent.status_code == 200
        assert sent.headers["RateLimit"].startswith('"submit";r=1')
    for _ in range(25):
        answer = ingresses[0].post("/v1/inference", json={}, headers={"X-API-Key": boss})
        assert answer.status_code == 422
        assert "RateLimit" not in answer.headers
    assert ingresses[0].get("/health", headers={"X-API-Key": red}).status_code == 200


def test_a_tenants_own_limits_replace_those_of_all_in_place(two_ingresses, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "CHECK_S", 0.0)
    (red, red_hash), (blue, blue_hash) = new_key(), new_key()
    content = {"tenants": {"red": {"keys": [red_hash], "limits": {"reads_per_minute": 2}}, "blue": [blue_hash]}}
    client, _ = two_ingresses(content, reads_per_minute=3)

    def policies(key: str) -> list[str]:
        return [client.get("/v1/models", headers={"X-API-Key": key}).headers["RateLimit-Policy"]]

    assert policies(red) == ['"read";q=2;w=60']
    assert policies(blue) == ['"read";q=3;w=60']
    content["tenants"]["red"]["limits"]["reads_per_minute"] = 9
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(content))
    assert policies(red) == ['"read";q=9;w=60']


def test_without_limits_nothing_is_counted_or_said(two_ingresses):
    key, sha256 = new_key()
    client, _ = two_ingresses({"tenants": {"red": [sha256]}})
    answer = client.get("/v1/models", headers={"X-API-Key": key})
    assert answer.status_code == 200
    assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)
