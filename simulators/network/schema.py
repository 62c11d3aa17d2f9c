"""What a flow is: the columns that every reader fills, every simulator draws and every writer takes.

A flow is one conversation between a client (who sent its first packet) and a server. The table below is made of NumPy
arrays of equal length, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

OUTCOMES = ("-", "SF", "S0", "REJ", "RSTO", "RSTR", "OTH")
"""How a TCP conversation went, in Zeek's words; "-" for what is not TCP.

SF: set up and closed. S0: no answer to the SYN. REJ: the SYN was refused. RSTO, RSTR: set up, then reset by the client
(server). OTH: anything else, such as one that was under way when the capture began or ended.
"""

COLUMNS: Mapping[str, npt.DTypeLike] = {
    "client": np.dtype((np.uint8, 16)),  # address; IPv4 as ::ffff:a.b.c.d; all zeros where unknown
    "server": np.dtype((np.uint8, 16)),
    "ip_version": np.uint8,  # 4 or 6
    "protocol": np.uint8,  # IP protocol number: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6, else "other"
    "client_port": np.uint16,  # 0 where there are none; of ICMP, the type
    "server_port": np.uint16,  # 0 where there are none; of ICMP, the code
    "start": np.float64,  # seconds since 1970, of the first packet
    "duration": np.float64,  # seconds from the first packet to the last
    "packets_out": np.int64,  # client to server
    "packets_in": np.int64,
    "bytes_out": np.int64,  # payload of the transport layer; headers do not count
    "bytes_in": np.int64,
    "size_std_out": np.float32,  # standard deviation of the payload bytes of a packet, over packets with payload
    "size_std_in": np.float32,
    "gap_mean": np.float64,  # seconds between one packet of the flow and the next, either way; 0 with one packet
    "gap_std": np.float64,
    "outcome": np.uint8,  # index into OUTCOMES
    "rtt": np.float32,  # seconds from the first packet out to the first one in; 0 where unknown
    "ttl_out": np.uint8,  # of the first packet each way; 0 where unknown
    "ttl_in": np.uint8,
    "window_out": np.uint16,  # TCP window of the SYN and the SYN-ACK, unscaled; 0 where unknown
    "window_in": np.uint16,
    "mss": np.uint16,  # of the client's SYN; 0 where unknown
}
"""Name -> dtype of the columns of a flow table, in order."""

Flows = dict[str, npt.NDArray[np.generic]]
"""A flow table: every name in COLUMNS -> array (n, ...) of its dtype. Readers may add columns (a label, a unit)."""


def empty(n: int) -> Flows:
    """A flow table of n rows of zeros."""
    return {name: np.zeros(n, dtype=dtype) for name, dtype in COLUMNS.items()}


def both_ways(flows: Flows, name: str) -> npt.NDArray[np.int64]:
    """``packets`` or ``bytes`` of each flow, out and in together, (n,)."""
    total: npt.NDArray[np.int64] = flows[f"{name}_out"].astype(np.int64) + flows[f"{name}_in"].astype(np.int64)
    return total
