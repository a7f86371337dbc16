"""API keys: who calls. The service knows only hashes of keys, from a file that may change while it runs.

The file is YAML. Each key is 256 random bits, so that a plain SHA-256 of it is enough:

    tenants:
      acme: [<SHA-256 of a key, hex>, ...]
    operators: [<SHA-256 of a key, hex>]

`edits-server keys new acme` makes one.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from serve_app.config import AuthConfig, strict_yaml
from serve_app.errors import KeysRefused, Unauthorized
from serve_app.intake.tenants import NO_LIMITS, Caller, TenantLimits

logger = logging.getLogger(__name__)

# Secret scanners, and people, recognise a key by this.
KEY_PREFIX = "edits_"
MAX_TENANT_CHARS = 100
# The file is checked for changes at most this often (s).
CHECK_S = 2.0
HOW_TO_SEND = "send one as 'Authorization: Bearer <key>' or as 'X-API-Key: <key>'"


def _check_sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("is not the SHA-256 of a key in 64 hex digits, lower case")
    return text


Sha256 = Annotated[str, AfterValidator(_check_sha256)]
Tenant = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TENANT_CHARS)]


class KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[Tenant, list[Sha256]] = {}
    operators: list[Sha256] = []


class Keys:
    """Finds out who calls, and is the one place that says what a tenant may have.

    `limits` are those of every tenant. They may be replaced at any time, and apply from the next request on.
    """

    def __init__(self, config: AuthConfig, limits: TenantLimits = NO_LIMITS) -> None:
        """Raises KeysRefused if there is a file of keys and it cannot be used."""
        self.limits = limits
        self._url_secret = config.url_secret
        self._path = None if config.keys_file is None else Path(config.keys_file)
        self._callers: dict[str, Caller] = {}
        self._hashes: dict[str, list[str]] = {}
        self._checked_at = time.monotonic()
        if self._path is not None:
            self._version = _version(self._path)
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
        caller = self._callers.get(hashlib.sha256(key.encode()).hexdigest())
        if caller is None:
            raise Unauthorized(f"this API key is unknown; {HOW_TO_SEND}")
        return replace(caller, limits=self.limits)

    def _read(self, path: Path) -> None:
        callers = read_keys(path)
        hashes = defaultdict(list)
        for sha256, caller in callers.items():
            hashes[caller.tenant].append(sha256)
        self._callers, self._hashes = callers, dict(hashes)

    def url_secrets(self, tenant: str) -> list[bytes]:
        """The secrets for URLs of a tenant's images: the first one signs, and each is accepted.

        There is one for each of the tenant's keys, in the order of the file, so that whoever removes a key also ends
        the URLs that were signed with it. With `url_secret` there is one as long as the tenant has a key. The tenant ""
        is that of operators.
        """
        if self._path is None:
            return []
        self._reload_if_changed(self._path)
        hashes = self._hashes.get(tenant, [])
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
        version = _version(path)
        if version == self._version:
            return
        self._version = version
        try:
            self._read(path)
            logger.info("read the API keys again: %s keys", len(self._callers))
        except KeysRefused as error:
            logger.error("the API keys were not read again: %s", error)


def _derived(key_hash: bytes) -> bytes:
    """A secret that is only good for URLs of images."""
    return hmac.new(key_hash, b"URLs of images", hashlib.sha256).digest()


def read_keys(path: Path) -> dict[str, Caller]:
    """The caller of each key, by the key's SHA-256 (hex). Raises KeysRefused, whose message quotes no hash."""
    try:
        file = KeysFile.model_validate(strict_yaml.load(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysRefused(f"{path} cannot be read") from error
    except yaml.YAMLError as error:
        # The error's own text quotes the file.
        what = "has one entry twice" if isinstance(error, strict_yaml.DuplicateKey) else "is not YAML"
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        raise KeysRefused(f"{path} {what}" + (f", see its line {mark.line + 1}" if mark else "")) from None
    except ValidationError as error:
        raise KeysRefused(f"{path}: {_what_is_wrong(error)}") from None
    callers: dict[str, Caller] = {}
    of_tenants = ((Caller(tenant, has_key=True), hashes) for tenant, hashes in file.tenants.items())
    for caller, hashes in (*of_tenants, (Caller(is_operator=True, has_key=True), file.operators)):
        _add(callers, caller, hashes, path)
    if not callers:
        raise KeysRefused(f"{path} has no keys, so nobody could use the service")
    return callers


def _add(callers: dict[str, Caller], caller: Caller, hashes: Iterable[str], path: Path) -> None:
    for sha256 in hashes:
        if callers.setdefault(sha256, caller) != caller:
            owners = " and ".join(repr(of.tenant or "operators") for of in (callers[sha256], caller))
            raise KeysRefused(f"{path}: one key belongs to {owners}")


def _what_is_wrong(error: ValidationError) -> str:
    details = error.errors(include_input=False, include_context=False, include_url=False)
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'the file'}: {detail['msg']}" for detail in details
    )


def _bearer(authorization: str | None) -> str | None:
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def new_key() -> tuple[str, str]:
    """A new key, and the SHA-256 (hex) by which the file knows it."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def new_entry(tenant: str | None) -> str:
    """A new key, and the lines of the keys file that make it known. The key is an operator's if `tenant` is None."""
    key, sha256 = new_key()
    lines = {"operators": [sha256]} if tenant is None else {"tenants": {tenant: [sha256]}}
    return f"{key}\n\nThe key is shown only now. Add this to the keys file:\n\n{yaml.safe_dump(lines)}"
