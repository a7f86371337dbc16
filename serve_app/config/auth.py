"""Who may call."""

from pydantic import Field

from serve_app.config.environment import Url
from serve_app.config.section import ConfigSection


class AuthConfig(ConfigSection):
    """Who may call."""

    keys_file: Url | None = Field(
        None,
        description="A YAML file with hashes of API keys (`edits-server keys new` makes a key). Changes take effect "
        "while the service runs. Null: everyone may call, without a key.",
    )
