"""Signed URLs: with one, a browser gets an image without a key, for an hour or two.

A browser sends no key for an `<img>` or a download. Answers to callers with keys therefore name images by URLs with a
token, which is good for one path, for `GET` and `HEAD`, and until it expires:

    /v1/requests/<id>/images/<n>?token=<expiry>.<tenant>.<HMAC-SHA256>
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import time

from serve_app.config import AuthConfig
from serve_app.intake.keys import Keys

NUMBER = "(0|[1-9][0-9]{0,5})"
# What can be signed: an image, the step preview of one, and a control image.
SIGNED_PATH = re.compile(r"/v1/requests/[0-9a-f]{32}/(images/{n}(/preview)?|control-images/{n})".replace("{n}", NUMBER))
TOKEN = re.compile(r"(?P<expiry>[0-9]{1,12})\.(?P<tenant>[A-Za-z0-9_-]*)\.[A-Za-z0-9_-]{43}")
# The parameter of a URL's query.
PARAMETER = "token"


class SignedUrls:
    """Signs the paths of images for a tenant, and checks signatures.

    Every ingress has the same keys file and config, so all of them make and accept the same tokens. Without API keys
    nothing is signed, and no token is accepted.
    """

    def __init__(self, config: AuthConfig, keys: Keys) -> None:
        self._keys = keys
        self._lifetime_s = config.url_lifetime_s

    def signed(self, tenant: str, path: str) -> str:
        """The path with a token in its query; as it is if the tenant has no keys.

        It is the same for calls within a lifetime, so that browsers can keep the image.
        """
        secrets = self._keys.url_secrets(tenant)
        if not secrets:
            return path
        lifetimes = int(time.time() // self._lifetime_s)
        expiry = (lifetimes + 2) * self._lifetime_s
        return f"{path}?{PARAMETER}={_token(secrets[0], tenant, path, expiry)}"

    def tenant_of(self, path: str, token: str) -> str | None:
        """The tenant that the token was made for, None if it is not good for this path now."""
        parts = TOKEN.fullmatch(token)
        if parts is None or not SIGNED_PATH.fullmatch(path):
            return None
        tenant, expiry = _decoded(parts["tenant"]), int(parts["expiry"])
        if tenant is None or time.time() >= expiry:
            return None
        # Any of the tenant's secrets: one ingress may have read a changed keys file before another.
        expected = [_token(secret, tenant, path, expiry) for secret in self._keys.url_secrets(tenant)]
        return tenant if any(hmac.compare_digest(one, token) for one in expected) else None


def _token(secret: bytes, tenant: str, path: str, expiry: int) -> str:
    message = json.dumps([tenant, path, expiry]).encode()
    signature = hmac.new(secret, message, hashlib.sha256).digest()
    return f"{expiry}.{_encoded(tenant.encode())}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
