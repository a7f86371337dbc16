"""How webhooks are signed and delivered."""

import base64
import binascii

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator

from serve_app.config.environment import Secret
from serve_app.config.section import ConfigSection, Network

SECRET_PREFIX = "whsec_"


class WebhooksConfig(ConfigSection):
    """How webhooks are signed (Standard Webhooks) and delivered. Without a secret there are no webhooks."""

    secret: Secret | None = Field(
        None,
        description="The environment variable that contains the secret, as `${NAME}`. The secret is `whsec_` and the "
        "base64 of 24 to 64 random bytes. Null: requests with a webhook are refused.",
    )
    timeout_s: PositiveFloat = Field(10.0, description="Maximum time that a receiver has to answer.")
    max_attempts: PositiveInt = Field(
        15, description="Maximum number of attempts at one delivery. 15 take about a day."
    )
    allow_private_addresses: bool = Field(False, description="Allow receivers whose addresses are not public.")
    allowed_networks: tuple[Network, ...] = Field(
        (), description="Networks (CIDR) that are allowed although they are not public."
    )
    denied_networks: tuple[Network, ...] = Field((), description="Networks (CIDR) that are always refused.")

    @field_validator("secret")
    @classmethod
    def _secret_can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        text = secret.get_secret_value()
        try:
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not text.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
            raise ValueError(f"a webhook secret is {SECRET_PREFIX} and the base64 of 24 to 64 random bytes")
        return secret
