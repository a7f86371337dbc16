"""Limits of the HTTP front."""

from ipaddress import IPv4Network, IPv6Network

from pydantic import Field, PositiveInt

from serve_app.config.section import ConfigSection, Network


class FrontConfig(ConfigSection):
    """Limits of the HTTP front that `edits-server run` puts before the service. Plain `serve run` has no front."""

    max_connections: PositiveInt = Field(4000, description="Maximum number of connections of all clients together.")
    max_requests_per_address: PositiveInt = Field(
        400,
        description="Maximum number of HTTP requests of one address in progress, streams and waiting ones included. "
        "More are answered 429.",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks (CIDR) of your own proxies. On their connections, `X-Forwarded-For` names the client's "
        "address and `X-Forwarded-Proto` its scheme; from other clients both headers are dropped.",
    )
