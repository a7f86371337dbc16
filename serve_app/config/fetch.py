"""Limits on what the service downloads for a client."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from serve_app.config.section import ConfigSection, Network


class FetchConfig(ConfigSection):
    """Limits on what the service downloads for a client, and the addresses that it connects to.

    With API keys, one tenant gets at most half of `budget_bytes` and of `connections`.
    """

    max_bytes: PositiveInt = Field(
        20_000_000, description="Maximum size of one control image, from a URL or in base64."
    )
    max_pixels: PositiveInt = Field(40_000_000, description="Maximum number of pixels of one control image.")
    max_lora_bytes: PositiveInt = Field(4_000_000_000, description="Maximum size of one adapter.")
    decode_timeout_s: PositiveFloat = Field(10.0, description="Maximum CPU time for decoding one control image.")
    timeout_s: PositiveFloat = Field(
        10.0,
        description="Maximum time for one whole download of a control image or of an adapter's header, and for the "
        "silence of a server during the download of an adapter.",
    )
    lora_timeout_s: PositiveFloat = Field(300.0, description="Maximum time for one whole download of an adapter.")
    max_redirects: NonNegativeInt = Field(5, description="Maximum number of redirects that one download follows.")
    max_urls: PositiveInt = Field(500, description="Maximum number of different control image URLs of one request.")
    budget_bytes: PositiveInt = Field(
        400_000_000,
        description="Maximum memory of one ingress for request bodies that it checks, and as much again for control "
        "images from URLs.",
    )
    connections: PositiveInt = Field(
        64, description="Maximum number of downloads that one ingress makes at the same time."
    )
    patience_s: PositiveFloat = Field(
        5.0,
        description="A request that waits longer than this for memory or for a connection is answered 503 "
        "`OVERLOADED`. This time does not count for `timeout_s`.",
    )
    allow_private_addresses: bool = Field(False, description="Allow addresses that are not public.")
    hub_hosts: tuple[str, ...] = Field(
        ("huggingface.co",),
        description="Hosts of the model hub, each `host` or `host:port`. The service understands the URLs of their "
        "pages. It sends a request's `hf_token` to them only, over https and to that port (443 by "
        "default).",
    )
    allowed_networks: tuple[Network, ...] = Field(
        (), description="Networks (CIDR) that are allowed although they are not public."
    )
    denied_networks: tuple[Network, ...] = Field((), description="Networks (CIDR) that are always refused.")
