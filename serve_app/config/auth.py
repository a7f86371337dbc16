"""Who may call."""

from pydantic import Field, PositiveInt, SecretStr, field_validator

from serve_app.config.environment import Secret, Url
from serve_app.config.section import ConfigSection

# A secret that is shorter could be found by trying.
MIN_SECRET_CHARS = 32


class AuthConfig(ConfigSection):
    """Who may call."""

    keys_file: Url | None = Field(
        None,
        description="A YAML file with hashes of API keys (`edits-server keys new` makes a key). Changes take effect "
        "while the service runs. Null: everyone may call, without a key.",
    )
    url_secret: Secret | None = Field(
        None,
        description="The environment variable that contains the secret with which URLs of images are signed, as "
        "`${NAME}`: at least 32 characters, the same for all ingresses. Null: each tenant's URLs are signed with the "
        "hash of its first key.",
    )
    url_lifetime_s: PositiveInt = Field(
        3600, description="A signed URL of an image is valid for at least this long, and for at most twice as long (s)."
    )

    @field_validator("url_secret")
    @classmethod
    def _secret_is_long(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value()) < MIN_SECRET_CHARS:
            raise ValueError(
                f"a secret for URLs has at least {MIN_SECRET_CHARS} characters, such as 32 random bytes in hex"
            )
        return secret
