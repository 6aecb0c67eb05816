"""Which addresses are public, against the whole of IANA's registries of special-purpose addresses."""

import ipaddress

import pytest

from mav.data.fetching.addresses import is_public

# iana-ipv4-special-registry, with multicast; the last is no entry of it but a cloud's.
IPV4 = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4
240.0.0.0/4 255.255.255.255/32 168.63.129.16/32
"""
# iana-ipv6-special-registry; then multicast, the blocks that were given up, and what is not given out as unicast.
IPV6 = """
::1/128 ::/128 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28
2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
ff00::/8 fec0::/10 3ffe::/16 ::/96 ::ffff:0:0:0/96 200::/7 4000::/3 6000::/3 8000::/3 a000::/3 c000::/3 e000::/4
"""
PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 172.32.0.0
192.0.1.0 192.0.3.0 192.88.98.255 192.169.0.0 198.17.255.255 198.20.0.0 203.0.112.255 223.255.255.255 93.184.216.34
168.63.129.15 168.63.129.17
2001:200:: 2001:4860:4860::8888 2606:2800:220:1:248:1893:25c8:1946 2606:4700::6810:84e5 2a00:1450:4001::200e
2620:4f:7fff::1 2620:4f:8001::1 3ffd::1 2003::1 2001:db7:ffff::1 2001:db9::1
"""


@pytest.mark.parametrize("block", (IPV4 + IPV6).split())
def test_no_address_of_a_special_block_is_public(block):
    net = ipaddress.ip_network(block)
    for place in {0, 1, net.num_addresses // 3, net.num_addresses // 2, net.num_addresses - 2, net.num_addresses - 1}:
        if 0 <= place < net.num_addresses:
            assert not is_public(str(net[place])), net[place]


@pytest.mark.parametrize("address", PUBLIC.split())
def test_addresses_beside_the_special_blocks_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("inner", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "93.184.216.34"])
@pytest.mark.parametrize(
    "form",
    [
        "::{}", "::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "64:ff9b:1::{}", "2001::{}", "fe80::5efe:{}",
        "2606:4700::5efe:{}", "2606:4700:0:1:200:5efe:{}", "2002:{hex}::1", "2001:0:1:2:3:4:{not}",
    ],
)  # fmt: skip
def test_no_form_that_embeds_an_ipv4_address_is_public(form, inner):
    number = int(ipaddress.IPv4Address(inner))
    parts = {name: f"{value >> 16:x}:{value & 0xFFFF:x}" for name, value in (("hex", number), ("not", ~number % 2**32))}
    assert not is_public(form.format(inner, **parts))


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "1", "0x7f.1", "127.1", "fe80::1%eth0", "2606:4700::1%lo", "1.1.1.1%lo", "[::1]", "1.1.1/8"],
)
def test_what_is_no_plain_address_is_not_public(text):
    assert not is_public(text)
