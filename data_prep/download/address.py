"""Connects to public addresses only, whatever a list, a redirect or a name server says."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

Network = IPv4Network | IPv6Network
_NAT64, _UNICAST = IPv6Network("64:ff9b::/96"), IPv6Network("2000::/3")


class PrivateAddressError(OSError):
    """Somebody led us to an address that is not on the public internet."""

    def __init__(self) -> None:
        # One text whatever the address: the library merges equal errors of a host with several addresses.
        super().__init__("leads to an address that is not public")


def is_public(address: str) -> bool:
    """Is this a unicast address of the public internet? One with an IPv4 address inside goes by that."""
    ip = ip_address(address)
    inner = _embedded(ip) if isinstance(ip, IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    # IPv6 has more ways to write an address of a site than the library knows; all that is public is in one network.
    return ip.is_global and not ip.is_multicast and (ip.version == 4 or ip in _UNICAST)


def checked_sockets(allowed: Sequence[Network]) -> Callable[[Any], socket.socket]:
    """What makes aiohttp's sockets: refuses each that would connect to an address neither public nor ``allowed``.

    It sees the address itself, after the name was resolved, so that no name and no way to spell an address can
    get round it.
    """

    def make(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = info
        if not is_public(place[0]) and not any(ip_address(place[0]) in network for network in allowed):
            raise PrivateAddressError
        return socket.socket(family, kind, protocol)

    return make


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
