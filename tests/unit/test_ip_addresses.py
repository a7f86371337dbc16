"""Which addresses count as public: every range of IANA's special-purpose registries, at both of its ends."""

import pytest

from serve_app.config import FetchConfig
from serve_app.errors import FetchFailed
from serve_app.storage.fetch import Fetcher
from serve_app.storage.ip_addresses import is_public, parse_address

NOT_PUBLIC = """
0.0.0.0 0.1.2.3 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.64.0.1 100.100.100.200 100.127.255.255
127.0.0.0 127.0.0.1 127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254 169.254.170.2 169.254.255.255 172.16.0.0
172.17.0.1 172.31.255.255 192.0.0.0 192.0.0.8 192.0.0.9 192.0.0.10 192.0.0.170 192.0.0.192 192.0.0.255 192.0.2.0
192.0.2.255 192.31.196.0 192.31.196.255 192.52.193.0 192.52.193.255 192.88.99.0 192.88.99.1 192.88.99.255 192.168.0.0
192.168.1.1 192.168.255.255 192.175.48.0 192.175.48.255 198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255
203.0.113.0 203.0.113.255 224.0.0.0 224.0.0.1 233.252.0.1 239.255.255.255 240.0.0.0 250.1.2.3 255.255.255.254
255.255.255.255 :: ::1 ::2 ::a9fe:a9fe ::169.254.169.254 ::ffff ::ffff:0.0.0.0 ::ffff:10.0.0.1 ::ffff:127.0.0.1
::ffff:169.254.169.254 ::ffff:168.63.129.16 ::ffff:192.0.0.192 ::ffff:0:127.0.0.1 ::ffff:0:a9fe:a9fe 64:ff9b::
64:ff9b::a9fe:a9fe 64:ff9b::8.8.8.8 64:ff9b:1::1 64:ff9b:1:ffff:ffff:ffff:a9fe:a9fe 100:: 100::1 100:0:0:1::1 200::1
400::1 1000::1 1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:: 2001::1 2001:0:a9fe:a9fe::1 2001:1::1 2001:1::2
2001:1::3 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff
2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 2002:: 2002:a9fe:a9fe::1 2002:7f00:1::
2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2620:4f:8000:: 2620:4f:8000:ffff:ffff:ffff:ffff:ffff 3fff:: 3fff::1
3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff 4000:: 4000::1 5f00::1 6000::1 8000::1 a000::1 c000::1 e000::1 f000::1 f800::1
fc00:: fd00::1 fd00:ec2::254 fd20:ce::254 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe00::1 fe80::1 fe80::1%eth0 febf::1
fec0::1 feff::1 ff00::1 ff02::1 ff0e::1
"""

# The neighbours of the ranges above, and some well-known servers.
PUBLIC = """
1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.31.195.255
192.31.197.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255
198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 2000::1 2001:200::1 2001:4860:4860::8888 2001:db7:ffff::1
2001:db9::1 2003::1 2600::1 2606:4700:4700::1111 2620:4f:7fff::1 2620:4f:8001::1 2a00:1450:4001:800::200e 3fff:1000::1
::ffff:8.8.8.8
"""


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_special_address_is_not_public(text):
    assert not is_public(parse_address(text))


@pytest.mark.parametrize("text", PUBLIC.split())
def test_address_next_to_a_special_range_is_public(text):
    assert is_public(parse_address(text))


@pytest.mark.parametrize(
    "text", ["192.0.0.192", "168.63.129.16", "192.88.99.1", "3fff::1", "5f00::1", "4000::1", "fd00:ec2::254"]
)
async def test_special_address_is_refused_before_a_connection_is_tried(text):
    fetcher = Fetcher(FetchConfig(timeout_s=1))
    with pytest.raises(FetchFailed, match="not a public one"):
        await fetcher.get(f"http://[{text}]/" if ":" in text else f"http://{text}/")
    await fetcher.close()


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("http://127.0.0.1:1/", {"allow_private_addresses": True}),
        ("http://[::ffff:127.0.0.1]:1/", {"allow_private_addresses": True}),
        ("http://127.0.0.1:1/", {"allowed_networks": ["127.0.0.0/8"]}),
    ],
)
async def test_denied_networks_win_over_what_is_allowed(url, settings):
    fetcher = Fetcher(FetchConfig.model_validate(settings | {"denied_networks": ["127.0.0.1/32", "2a00::/16"]}))
    with pytest.raises(FetchFailed, match="not a public one"):
        await fetcher.get(url)
    await fetcher.close()
