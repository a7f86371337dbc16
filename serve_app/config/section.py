"""What every section of the configuration is: a frozen pydantic model that refuses unknown keys."""

from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

Network: TypeAlias = IPv4Network | IPv6Network


class ConfigSection(BaseModel):
    # An error names the key. Its value may hold a secret, and Serve logs the error.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
