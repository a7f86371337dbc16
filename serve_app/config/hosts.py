"""Names and addresses of this machine."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a service under this name or address (IPv6 without brackets)."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
