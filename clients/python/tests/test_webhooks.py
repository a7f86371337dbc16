"""A webhook is believed only with a fresh signature of the service's secret."""

import json
from datetime import datetime, timezone

import pytest
from standardwebhooks import Webhook

from edits_client import WebhookInvalid, verify_webhook

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = json.dumps({"type": "request.succeeded"})


def signed(now: float = 1_000_000.0) -> dict[str, str]:
    """The headers of a webhook as the reference implementation of the specification signs it."""
    signature = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(now, timezone.utc), BODY)
    return {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(int(now)), "Webhook-Signature": signature}


def test_sound_webhook_is_read():
    assert verify_webhook(BODY.encode(), signed(), SECRET, now=1_000_299.0) == {"type": "request.succeeded"}


def test_one_of_several_signatures_is_enough():
    headers = signed()
    headers["Webhook-Signature"] = "v1,AAAA " + headers["Webhook-Signature"]
    assert verify_webhook(BODY.encode(), headers, SECRET, now=1_000_000.0)


@pytest.mark.parametrize(
    ("body", "change", "secret", "now"),
    [
        (BODY + " ", {}, SECRET, 1_000_000.0),
        (BODY, {"Webhook-Id": "msg_2"}, SECRET, 1_000_000.0),
        (BODY, {"Webhook-Timestamp": "1000001"}, SECRET, 1_000_000.0),
        (BODY, {"Webhook-Timestamp": "soon"}, SECRET, 1_000_000.0),
        (BODY, {}, "whsec_AAAA", 1_000_000.0),
        (BODY, {}, "not base64!", 1_000_000.0),
        (BODY, {}, SECRET, 1_000_301.0),
        (BODY, {}, SECRET, 999_699.0),
    ],
)
def test_anything_else_is_refused(body, change, secret, now):
    with pytest.raises(WebhookInvalid):
        verify_webhook(body.encode(), signed() | change, secret, now=now)


def test_missing_header_is_named():
    with pytest.raises(WebhookInvalid, match="webhook-id"):
        verify_webhook(BODY.encode(), {}, SECRET)
