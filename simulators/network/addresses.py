"""Addresses as arrays of 16 bytes, and where synthetic hosts get theirs from: documentation and benchmark prefixes."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import numpy as np
from numpy.typing import NDArray

from simpe.simulators.network.profiles import NAMES

BENCHMARK = ip_network("198.18.0.0/15")  # RFC 2544: external servers in its first half, clients in the second
DOCUMENTATION = ip_network("2001:db8::/32")  # RFC 3849
MAPPED = bytes(10) + b"\xff\xff"
"""What stands before an IPv4 address."""


def packed(address: str) -> NDArray[np.uint8]:
    """An address as 16 bytes. Raises ValueError for what is none."""
    octets = ip_network(address).network_address.packed
    return np.frombuffer(octets if len(octets) == 16 else MAPPED + octets, dtype=np.uint8)


_GROUP = {"mdns": ("224.0.0.251", "ff02::fb"), "llmnr": ("224.0.0.252", "ff02::1:3"), "ssdp": ("239.255.255.250",) * 2}
GROUPS = np.array(
    [[packed(a) for a in _GROUP.get(name, ("239.255.0.1", "ff05::1:1"))] for name in NAMES], dtype=np.uint8
)
"""Multicast group of each profile, by version: uint8 (profiles, 2, 16)."""


def hosts(
    four: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network, six: NDArray[np.bool_], offset: int
) -> NDArray[np.uint8]:
    """The base address of a pool of hosts (n, 16)."""
    bases = [packed(str(network.network_address + offset)) for network in (four, other)]
    return np.where(six[:, None], bases[1], bases[0])


def plus(base: NDArray[np.uint8], number: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Addresses (n, 16) whose last four bytes are raised by a number (n,)."""
    low = np.ascontiguousarray(base[:, 12:]).view(">u4")[:, 0] + number
    return np.concatenate([base[:, :12], low.astype(">u4")[:, None].view(np.uint8)], axis=1)
