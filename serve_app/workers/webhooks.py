"""Webhooks: posts what becomes of a request to who asked for it, at least once, signed.

They follow the Standard Webhooks specification (standardwebhooks.com). A slow or dead receiver holds up its own
deliveries alone: each host has a few at a time, and the oldest of every host goes before the second of any.
"""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.trace import SpanKind
from standardwebhooks import Webhook

from serve_app.concurrency import background
from serve_app.concurrency.loops import every
from serve_app.config import FetchConfig, WebhooksConfig
from serve_app.errors import FetchFailed, InvalidParameter
from serve_app.jobs.records import Delivery
from serve_app.jobs.webhook_queue import WebhookQueue
from serve_app.storage.fetch import Fetcher
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import DELIVERED, GIVEN_UP, NO_METER, RETRIED, WEBHOOKS, Loop, Meter

logger = logging.getLogger(__name__)

MAX_URL_CHARS = 2000
# How many posts are under way at a time, and of one host (fewer than twice that, see `_take`).
CONCURRENCY, PER_HOST = 64, 4
# How often the queue is polled (s).
POLL_S = 1.0
# What reading the request and writing the outcome may take beside the post itself (s).
RECORDING_S = 30.0
# Each delay is twice the one before, so that 15 attempts take 22 h 45 min; then by chance up to a quarter less or
# more, so that what failed together is not tried together.
FIRST_DELAY_S, MAX_DELAY_S, JITTER = 5.0, 43_200.0, 0.25
GONE = 410

# What a webhook's `data` is; None if the request is gone.
PayloadOf = Callable[[Delivery], Awaitable[dict[str, Any] | None]]


def check_webhook(url: str, config: WebhooksConfig) -> None:
    """Raise InvalidParameter if nothing can be posted to `url`. Its address is checked when something is."""
    if config.secret is None:
        _refuse("this service has no secret to sign webhooks with, so it sends none; leave webhook_url out")
    if len(url) > MAX_URL_CHARS:
        _refuse(f"webhook_url has {len(url)} characters, at most {MAX_URL_CHARS} are accepted")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    # urlsplit drops some characters and takes others for a part of the host; databases lower ASCII letters alone.
    if not is_url or not (url.isascii() and url.isprintable()) or any(character in url for character in " \\"):
        _refuse("webhook_url is not a valid http or https URL")
    if "@" in parts.netloc:
        _refuse("webhook_url carries a user name or a password; receivers check the signature instead")


def _refuse(message: str) -> None:
    raise InvalidParameter(message, {"parameter": "webhook_url"})


def delay_after(attempts: int) -> float:
    """How long after so many failed attempts the next one is made (s)."""
    delay = min(FIRST_DELAY_S * 2.0 ** (attempts - 1), MAX_DELAY_S)
    return delay * random.uniform(1 - JITTER, 1 + JITTER)


class Deliverer:
    """Posts the webhooks of a queue. Call `run`, which works until cancelled.

    Several deliverers may share a queue. If one dies, the deliveries that it had in progress are posted again.
    `payload` is called for each attempt.
    """

    def __init__(
        self, queue: WebhookQueue, config: WebhooksConfig, payload: PayloadOf, meter: Meter = NO_METER
    ) -> None:
        """`config` has a secret."""
        assert config.secret is not None
        self._queue = queue
        self._config = config
        self._payload = payload
        self._meter = meter
        self._signer = Webhook(config.secret.get_secret_value())
        self._work: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        config = self._config
        self._fetcher = Fetcher(
            FetchConfig(
                timeout_s=config.timeout_s,
                allow_private_addresses=config.allow_private_addresses,
                allowed_networks=config.allowed_networks,
                denied_networks=config.denied_networks,
                connections=CONCURRENCY,
            )
        )
        try:
            await every(POLL_S, self._start_due, loop=Loop.WEBHOOKS, meter=self._meter, pause=self._until_room)
        finally:
            try:
                await background.cancel(*self._work)
            finally:
                await self._fetcher.close()

    async def _start_due(self) -> None:
        while await self._take():
            pass

    async def _until_room(self, seconds: float) -> None:
        """Wait until a delivery ends, since that makes room for another one, or for `seconds`."""
        if self._work:
            await asyncio.wait(self._work, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds)

    async def _take(self) -> bool:
        """Begin what is due and has room; whether there was any."""
        room = CONCURRENCY - len(self._work)
        if room <= 0:
            return False
        # A host that has room for one gets PER_HOST, as a query that counts for each would cost more.
        full = [host for host, count in Counter(self._work.values()).items() if count >= PER_HOST]
        lease_s = self._config.timeout_s + RECORDING_S
        deliveries = await self._queue.take(room, lease_s, PER_HOST, full)
        for delivery in deliveries:
            task = asyncio.create_task(self._deliver(delivery))
            self._work[task] = delivery.host
            task.add_done_callback(self._work.pop)
        return bool(deliveries)

    async def _deliver(self, delivery: Delivery) -> None:
        with tracing.for_request(delivery.request_id, delivery.traceparent), tracing.span("webhook", SpanKind.CLIENT):
            try:
                self._meter.record(WEBHOOKS, outcome=await self._outcome(delivery))
            except Exception:
                logger.exception("webhook %s: nothing could be recorded; it goes out again", delivery.id)

    async def _outcome(self, delivery: Delivery) -> str:
        """Try it, and record what became of it."""
        if delivery.attempts > self._config.max_attempts:
            # Those before were begun by processes that did not live to write it down.
            await self._queue.failed(delivery.id, "no attempt came to an end", None)
            return GIVEN_UP
        data = await self._payload(delivery)
        if data is None:
            await self._queue.failed(delivery.id, "the request is gone", None)
            return GIVEN_UP
        return await self._attempt(delivery, data)

    async def _attempt(self, delivery: Delivery, data: dict[str, Any]) -> str:
        status = None
        try:
            status = await self._post(delivery, data)
            if 200 <= status < 300:
                await self._queue.delivered(delivery.id)
                return DELIVERED
            error = f"its server answered {status}"
        except FetchFailed as failure:
            error = failure.message
        last = status == GONE or delivery.attempts >= self._config.max_attempts
        logger.warning(
            "webhook %s to %s, attempt %s: %s",
            delivery.id,
            delivery.host,
            delivery.attempts,
            error + last * "; given up",
        )
        await self._queue.failed(delivery.id, error, None if last else delay_after(delivery.attempts))
        return GIVEN_UP if last else RETRIED

    async def _post(self, delivery: Delivery, data: dict[str, Any]) -> int:
        happened = datetime.fromtimestamp(delivery.created_at, UTC).isoformat(timespec="microseconds")
        body = json.dumps(
            {"type": f"request.{delivery.event}", "timestamp": happened.replace("+00:00", "Z"), "data": data}
        )
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(delivery.id, now, body),
        }
        return await self._fetcher.post(delivery.webhook.url, body.encode(), headers)
