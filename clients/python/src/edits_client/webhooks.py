"""Webhooks of the service: check that one was really sent by it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from edits_client.errors import EditsError

# How far the time in a webhook may be from this machine's clock (s), as the Standard Webhooks specification proposes.
TOLERANCE_S = 300.0


class WebhookInvalid(EditsError):
    """The webhook was not sent by the service, was changed, or is too old."""


def verify_webhook(body: bytes, headers: Mapping[str, str], secret: str, now: float | None = None) -> dict[str, Any]:
    """The payload of a webhook, checked by the Standard Webhooks specification (standardwebhooks.com).

    `body` is the body as it came, `headers` those of its request, `secret` the one of the service's config, with or
    without the prefix `whsec_`. `now` is the time (s since the epoch), by default this machine's.
    Raises WebhookInvalid.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (sent[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        age_s = abs((time.time() if now is None else now) - int(timestamp))
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except KeyError as error:
        raise WebhookInvalid(f"the header {error.args[0]} is missing") from None
    except binascii.Error:
        raise WebhookInvalid("the secret is not base64") from None
    except ValueError:
        raise WebhookInvalid("webhook-timestamp is not a number of seconds") from None
    if age_s > TOLERANCE_S:
        raise WebhookInvalid(f"webhook-timestamp is {age_s:.0f} s from now")
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = "v1," + base64.b64encode(digest).decode()
    if not any(hmac.compare_digest(expected.encode(), signature.encode()) for signature in signatures.split(" ")):
        raise WebhookInvalid("the signature is not that of this body and secret")
    payload: dict[str, Any] = json.loads(body)
    return payload
