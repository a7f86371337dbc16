"""Posts webhooks: signed reports of a request's events, each at least once, to the URL that the request names.

They follow the Standard Webhooks specification (standardwebhooks.com). A slow or dead receiver delays only its own
deliveries: few posts to one host run at a time, and the oldest delivery of every host comes before the second of any
host.
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
from serve_app.telemetry.failures import log_failure
from serve_app.telemetry.metrics import DELIVERED, GIVEN_UP, NO_METER, RETRIED, WEBHOOKS, Loop, Meter

logger = logging.getLogger(__name__)

MAX_URL_CHARS = 2000
# How many posts run at a time, and how many to one host (less than twice PER_HOST is possible, see `_start_batch`).
CONCURRENCY, PER_HOST = 64, 4
# How often the queue is polled (s).
POLL_S = 1.0
# The time for reading the request and recording the outcome, in addition to the post itself (s).
RECORDING_S = 30.0
# Each delay is twice the previous one, so 15 attempts take 22 h 45 min. A random part of up to JITTER is added or
# subtracted, so that deliveries that failed together are not tried again together.
FIRST_DELAY_S, MAX_DELAY_S, JITTER = 5.0, 43_200.0, 0.25
# The HTTP status with which a receiver says that it wants no more posts.
GONE = 410

# Returns the `data` of a webhook's body, or None if the request was deleted.
PayloadOf = Callable[[Delivery], Awaitable[dict[str, Any] | None]]


def check_webhook(url: str, config: WebhooksConfig) -> None:
    """Raise InvalidParameter if `url` cannot receive webhooks. The address of its host is checked at each post."""
    if config.secret is None:
        _refuse("this service has no secret to sign webhooks with, so it sends none; leave webhook_url out")
    if len(url) > MAX_URL_CHARS:
        _refuse(f"webhook_url has {len(url)} characters; at most {MAX_URL_CHARS} are accepted")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    # urlsplit drops some characters, and accepts others in host names. Databases convert only ASCII letters to lower
    # case.
    if not is_url or not (url.isascii() and url.isprintable()) or any(character in url for character in " \\"):
        _refuse("webhook_url is not a valid http or https URL")
    if "@" in parts.netloc:
        _refuse("webhook_url carries a user name or a password; receivers check the signature instead")


def _refuse(message: str) -> None:
    raise InvalidParameter(message, {"parameter": "webhook_url"})


def delay_after(attempts: int) -> float:
    """The delay before the next attempt after `attempts` failed ones (s)."""
    delay = min(FIRST_DELAY_S * 2.0 ** (attempts - 1), MAX_DELAY_S)
    return delay * random.uniform(1 - JITTER, 1 + JITTER)


class Deliverer:
    """Posts the webhooks of a queue. `run` works until it is cancelled.

    Several deliverers may share a queue. If one dies, the deliveries that it had in progress are posted again.
    `payload` makes the `data` of each attempt.
    """

    def __init__(
        self, queue: WebhookQueue, config: WebhooksConfig, payload: PayloadOf, meter: Meter = NO_METER
    ) -> None:
        """`config.secret` must be set."""
        assert config.secret is not None
        self._queue = queue
        self._config = config
        self._payload = payload
        self._meter = meter
        self._signer = Webhook(config.secret.get_secret_value())
        self._posts: dict[asyncio.Task[None], str] = {}

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
            await every(POLL_S, self._start_due, loop=Loop.WEBHOOKS, meter=self._meter, pause=self._wait_for_room)
        finally:
            try:
                await background.cancel(*self._posts)
            finally:
                await self._fetcher.close()

    async def _start_due(self) -> None:
        while await self._start_batch():
            pass

    async def _wait_for_room(self, seconds: float) -> None:
        """Wait until a delivery ends, which makes room for another one, but not longer than `seconds`."""
        if self._posts:
            await asyncio.wait(self._posts, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds)

    async def _start_batch(self) -> bool:
        """Start posting deliveries that are due, as many as there is room for. Returns whether there were any."""
        room = CONCURRENCY - len(self._posts)
        if room <= 0:
            return False
        # A host with room for one more post gets up to PER_HOST: a query with a limit per host would be slower.
        full = [host for host, count in Counter(self._posts.values()).items() if count >= PER_HOST]
        lease_s = self._config.timeout_s + RECORDING_S
        deliveries = await self._queue.take(room, lease_s, PER_HOST, full)
        for delivery in deliveries:
            task = asyncio.create_task(self._deliver(delivery))
            self._posts[task] = delivery.host
            task.add_done_callback(self._posts.pop)
        return bool(deliveries)

    async def _deliver(self, delivery: Delivery) -> None:
        with tracing.for_request(delivery.request_id, delivery.traceparent), tracing.span("webhook", SpanKind.CLIENT):
            try:
                self._meter.record(WEBHOOKS, outcome=await self._outcome(delivery))
            except Exception:
                log_failure(
                    logger, "webhook %s: its outcome could not be recorded; it will be posted again", delivery.id
                )

    async def _outcome(self, delivery: Delivery) -> str:
        """Make one attempt at a delivery and record its outcome, which is returned."""
        if delivery.attempts > self._config.max_attempts:
            # The processes that made the earlier attempts died before they could record an outcome.
            await self._queue.failed(delivery.id, "no attempt finished", None)
            return GIVEN_UP
        data = await self._payload(delivery)
        if data is None:
            await self._queue.failed(delivery.id, "the request was deleted", None)
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
        ending = "; this was the last attempt" if last else ""
        logger.warning(
            "webhook %s to %s, attempt %s: %s%s", delivery.id, delivery.host, delivery.attempts, error, ending
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
