"""API keys: who calls. The service knows only hashes of keys, from a file that may change while it runs.

`callers/keys_file.py` describes the file; `edits-server keys new acme` makes a key.
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import yaml

from serve_app.config import AuthConfig
from serve_app.config.paths import file_version
from serve_app.errors import KeysRefused, Unauthorized
from serve_app.intake.callers.keys_file import KnownKey, read_keys
from serve_app.intake.tenants import NO_LIMITS, Caller, TenantLimits

logger = logging.getLogger(__name__)

# Secret scanners, and people, recognise a key by this.
KEY_PREFIX = "edits_"
# The file is checked for changes at most this often (s).
CHECK_S = 2.0
HOW_TO_SEND = "send one as 'Authorization: Bearer <key>' or as 'X-API-Key: <key>'"


class Keys:
    """Finds out who calls, and is the one place that says what a tenant may have.

    `limits` are those of every tenant. They may be replaced at any time, and apply from the next request on.
    """

    def __init__(
        self, config: AuthConfig, limits: TenantLimits = NO_LIMITS, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` says when keys expire (s since the epoch). Raises KeysRefused if there is a file of keys and it
        cannot be used."""
        self.limits = limits
        self._clock = clock
        self._url_secret = config.url_secret
        self._path = None if config.keys_file is None else Path(config.keys_file)
        self._known: dict[str, KnownKey] = {}
        self._hashes: dict[str, list[str]] = {}
        self._checked_at = time.monotonic()
        if self._path is not None:
            self._version = file_version(self._path)
            self._read(self._path)

    def caller(self, authorization: str | None, x_api_key: str | None) -> Caller:
        """Who sends these two headers. X-API-Key wins, since a proxy may fill the header Authorization.

        Raises Unauthorized.
        """
        if self._path is None:
            return Caller(limits=self.limits)
        self._reload_if_changed(self._path)
        key = x_api_key or _bearer(authorization)
        if key is None:
            raise Unauthorized(f"an API key is needed: {HOW_TO_SEND}")
        # The lookup compares digests. Its duration may reveal the beginning of one, from which no key can be derived.
        known = self._known.get(hashlib.sha256(key.encode()).hexdigest())
        if known is None:
            raise Unauthorized(f"this API key is unknown; {HOW_TO_SEND}")
        if self._has_expired(known):
            raise Unauthorized(
                f"this API key expired at {_utc(known.expires_at or 0.0)}; ask your operator for a new one"
            )
        limits = self.limits.of_operators if known.caller.is_operator else self.limits.replaced_by(known.limits)
        return replace(known.caller, limits=limits)

    def limits_of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant. Those of "" are the operators' where there are keys."""
        if self._path is None:
            return self.limits
        self._reload_if_changed(self._path)
        if not tenant:
            return self.limits.of_operators
        hashes = self._hashes.get(tenant)
        return self.limits.replaced_by(self._known[hashes[0]].limits) if hashes else self.limits

    def _has_expired(self, known: KnownKey) -> bool:
        return known.expires_at is not None and known.expires_at <= self._clock()

    def _read(self, path: Path) -> None:
        known = read_keys(path)
        hashes = defaultdict(list)
        for sha256, key in known.items():
            hashes[key.caller.tenant].append(sha256)
        self._known, self._hashes = known, dict(hashes)

    def url_secrets(self, tenant: str) -> list[bytes]:
        """The secrets for URLs of a tenant's images: the first one signs, and each is accepted.

        There is one for each of the tenant's keys that have not expired, in the order of the file, so that whoever
        removes a key also ends the URLs that were signed with it. With `url_secret` there is one as long as the tenant
        has a key. The tenant "" is that of operators.
        """
        if self._path is None:
            return []
        self._reload_if_changed(self._path)
        hashes = [sha256 for sha256 in self._hashes.get(tenant, ()) if not self._has_expired(self._known[sha256])]
        if hashes and self._url_secret is not None:
            return [self._url_secret.get_secret_value().encode()]
        return [_derived(bytes.fromhex(sha256)) for sha256 in hashes]

    def _reload_if_changed(self, path: Path) -> None:
        """Read the file again if it has changed. If it cannot be used, the keys stay as they are."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_S:
            return
        self._checked_at = now
        # The version is taken before the file is read: a write during the reading makes another version.
        version = file_version(path)
        if version == self._version:
            return
        self._version = version
        try:
            self._read(path)
            logger.info("read the API keys again: %s keys", len(self._known))
        except KeysRefused as error:
            logger.error("the API keys were not read again: %s", error)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _derived(key_hash: bytes) -> bytes:
    """A secret that is only good for URLs of images."""
    return hmac.new(key_hash, b"URLs of images", hashlib.sha256).digest()


def _bearer(authorization: str | None) -> str | None:
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def new_key() -> tuple[str, str]:
    """A new key, and the SHA-256 (hex) by which the file knows it."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def new_entry(tenant: str | None) -> str:
    """A new key, and the lines of the keys file that make it known. The key is an operator's if `tenant` is None."""
    key, sha256 = new_key()
    lines = {"operators": [sha256]} if tenant is None else {"tenants": {tenant: [sha256]}}
    return f"{key}\n\nThe key is shown only now. Add this to the keys file:\n\n{yaml.safe_dump(lines)}"
