"""Decides which IP addresses are public, by its own table: Python's `is_global` changes from release to release.

Sources: all of IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), even the globally reachable entries,
since those have no web servers; IANA's multicast ranges; and addresses of cloud providers that are in none of them. In
IPv6, only 2000::/3 is assigned as global unicast (RFC 4291); everything else is refused.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

GLOBAL_UNICAST = IPv6Network("2000::/3")

SPECIAL_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared by carriers; a metadata service of a cloud is in it
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # not IANA's: the host endpoint of Azure's virtual machines
        "169.254.0.0/16",  # link-local: metadata services of most clouds
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments; a metadata service of a cloud is in it
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # automatic multicast tunneling
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
    )
)

# The special ranges within 2000::/3. Outside of it are loopback, IPv4-compatible and -translated addresses, NAT64
# (64:ff9b::/96, 64:ff9b:1::/48), discard-only (100::/64), segment routing (5f00::/16), unique local, link-local and
# multicast addresses.
SPECIAL_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks and others
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: a relay forwards it to any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)


def parse_address(text: str) -> Address:
    """The address that a socket connects to: without its zone, an IPv4-mapped one as IPv4. Raises ValueError."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_public(address: Address) -> bool:
    """Whether a public web server may have this address. An IPv4-mapped one must be converted by `parse_address`."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in SPECIAL_IPV4)
    return address in GLOBAL_UNICAST and not any(address in network for network in SPECIAL_IPV6)
