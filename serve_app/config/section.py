"""What every section of the configuration is: a frozen pydantic model that refuses unknown keys."""

from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

Network: TypeAlias = IPv4Network | IPv6Network


class ConfigSection(BaseModel):
    # An error names the key. Its value may hold a secret, and Serve logs the error.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def faults_of(error: ValidationError, skip: int = 0) -> str:
    """What is wrong, without the values: each key, without its first `skip` levels, and its fault."""
    faults = error.errors(include_input=False, include_context=False, include_url=False)
    return "; ".join(_fault([str(part) for part in fault["loc"][skip:]], fault["msg"]) for fault in faults)


def _fault(place: list[str], message: str) -> str:
    # Pydantic writes [key] behind a key that is itself at fault.
    key = ".".join(part for part in place if part != "[key]")
    return f"{key}: {message}".removeprefix(": ").replace("Value error, ", "")
