"""Which webhooks are accepted, what signs them, and how long they are tried."""

from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError

from serve_app.config import WebhooksConfig
from serve_app.errors import InvalidParameter
from serve_app.intake.answers.events import Event
from serve_app.schemas.requests import WebhookEventName
from serve_app.tasks import WebhookEvent
from serve_app.workers import webhooks
from serve_app.workers.webhooks import check_webhook, delay_after
from tests.unit.receivers import SECRET

WITH_SECRET = WebhooksConfig(secret=SecretStr(SECRET))


def test_clients_may_ask_for_every_event_that_is_delivered():
    assert get_args(WebhookEventName) == tuple(WebhookEvent)
    assert {event.value for event in WebhookEvent} <= {event.value for event in Event}


def test_attempts_take_about_a_day(monkeypatch):
    monkeypatch.setattr(webhooks, "JITTER", 0.0)
    delays = [delay_after(attempt) for attempt in range(1, WebhooksConfig().max_attempts)]
    assert delays[:3] == [5, 10, 20]
    assert 22 * 3600 < sum(delays) < 24 * 3600
    assert delay_after(1000) == webhooks.MAX_DELAY_S


def test_delays_scatter_by_a_quarter():
    delays = [delay_after(3) for _ in range(500)]
    assert 15 <= min(delays) < 16
    assert 24 < max(delays) <= 25


@pytest.mark.parametrize(
    "url", ["https://example.org", "http://example.org:8080/a?b=c", "HTTPS://EXAMPLE.org/", "https://[2001:db8::1]/x"]
)
def test_urls_that_can_be_posted_to(url):
    """Any other URL raises, as the next test shows."""
    assert check_webhook(url, WITH_SECRET) is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.org/", "not a valid http or https URL"),
        ("example.org", "not a valid http or https URL"),
        ("", "not a valid http or https URL"),
        ("https://", "not a valid http or https URL"),
        ("https:///x", "not a valid http or https URL"),
        ("https://example.org:x/", "not a valid http or https URL"),
        ("https://example.org:0/", "not a valid http or https URL"),
        ("https://[::1/", "not a valid http or https URL"),
        ("https://example.org/a b", "not a valid http or https URL"),
        ("https://ÄRGER.example/", "not a valid http or https URL"),
        ("https://exam\tple.org/", "not a valid http or https URL"),
        ("https://example.org\\@private/", "not a valid http or https URL"),
        ("https://me:secret@example.org/", "a user name or a password"),
        ("https://me@example.org/", "a user name or a password"),
        ("https://example.org/" + "x" * 2000, "has 2020 characters; at most 2000"),
    ],
)
def test_urls_that_are_refused_in_words(url, says):
    with pytest.raises(InvalidParameter, match=says) as caught:
        check_webhook(url, WITH_SECRET)
    assert caught.value.details == {"parameter": "webhook_url"}
    assert "secret" not in str(caught.value)


def test_without_a_secret_there_are_no_webhooks():
    with pytest.raises(InvalidParameter, match="no secret"):
        check_webhook("https://example.org", WebhooksConfig())


@pytest.mark.parametrize(
    "secret", ["", "whsec_", SECRET[6:], "whsec_c2hvcnQ=", "whsec_not base64!", SECRET + "MDEy" * 20]
)
def test_secret_that_cannot_sign_is_refused(secret, monkeypatch):
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    with pytest.raises(ValidationError, match=r"whsec_ and the base64 of 24 to 64 random bytes") as caught:
        WebhooksConfig.model_validate({"secret": "${WEBHOOK_SECRET}"})
    assert not secret or secret == "whsec_" or secret not in str(caught.value)


def test_secret_comes_from_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    config = WebhooksConfig.model_validate({"secret": "${WEBHOOK_SECRET}"})
    assert config.secret == SecretStr(SECRET)
    assert SECRET not in repr(config)
    assert SECRET not in str(config.model_dump(mode="json"))
