"""placeholder until the keys land"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who sends a request: whose tenant it is, whether it sees every tenant's, whether it came with a key."""

    tenant: str = ""
    is_operator: bool = False
    has_key: bool = False
