"""Classes of IP addresses: who may be reached at all, who only where an operator grants it, who never.

The tables are ours and not `ipaddress`' properties, whose meaning moved between Python releases. They follow
the IANA special-purpose registries (RFC 6890 and its updates) and name the addresses at which clouds answer
for their machines. An IPv6 address that carries an IPv4 one is never better than what it carries.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address


class AddressClass(enum.IntEnum):
    """``PRIVATE`` needs ``allow_private``; ``FORBIDDEN`` is refused in any case. A greater one is worse."""

    PUBLIC = 0
    PRIVATE = 1
    FORBIDDEN = 2


def _networks4(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(text) for text in texts)


def _networks6(*texts: str) -> tuple[IPv6Network, ...]:
    return tuple(IPv6Network(text) for text in texts)


# A machine's own metadata service, in each cloud; some stand inside ranges that are otherwise usable.
_METADATA4: Final = frozenset(
    IPv4Address(text) for text in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16")
)
_METADATA6: Final = frozenset(IPv6Address(text) for text in ("fd00:ec2::254", "fd20:ce::254"))

_PRIVATE4: Final = _networks4(
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"
)
_FORBIDDEN4: Final = _networks4(
    "0.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)

_LOOPBACK6: Final = IPv6Address("::1")
_UNIQUE_LOCAL6: Final = IPv6Network("fc00::/7")
_GLOBAL6: Final = IPv6Network("2000::/3")
# Tunnels (Teredo, 6to4) end at whatever IPv4 address they name; both are long retired.
_FORBIDDEN6: Final = _networks6(
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
)
# Translators carry these on to the IPv4 address in the last 32 bits.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})


def classify(address: Address) -> AddressClass:
    """The class of an address, the worst of its own and of each that it embeds."""
    if isinstance(address, IPv4Address):
        return _classify4(address)
    if address in _MAPPED or address in _NAT64:
        return _classify4(_low32(address))
    own = _classify6(address)
    is_isatap = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    return max(own, _classify4(_low32(address))) if is_isatap else own


def _classify4(address: IPv4Address) -> AddressClass:
    if address in _METADATA4 or _within4(address, _FORBIDDEN4):
        return AddressClass.FORBIDDEN
    return AddressClass.PRIVATE if _within4(address, _PRIVATE4) else AddressClass.PUBLIC


def _classify6(address: IPv6Address) -> AddressClass:
    if address in _METADATA6:
        return AddressClass.FORBIDDEN
    if address == _LOOPBACK6 or address in _UNIQUE_LOCAL6:
        return AddressClass.PRIVATE
    if address not in _GLOBAL6 or any(address in network for network in _FORBIDDEN6):
        return AddressClass.FORBIDDEN
    return AddressClass.PUBLIC


def _low32(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def _within4(address: IPv4Address, networks: Iterable[IPv4Network]) -> bool:
    return any(address in network for network in networks)
