"""Writing captures against scapy: packets a second of both, and their ratio, medians of interleaved runs.

    python benchmarks/network_write.py [--packets 400000] [--runs 5]

Header-only packets: TCP connections that are set up and closed without data, and UDP floods of one byte. The writer
makes the whole file, from planned flows to bytes on disk; scapy builds the same packets as objects, in the way of its
manual, and its `wrpcap` writes them. scapy gets 2,000 of them a run, since its speed does not depend on their number.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scapy.all import IP, TCP, UDP, Ether, wrpcap

from simpe.simulators.network.profiles import NAMES
from simpe.simulators.network.schema import Flows
from simpe.simulators.network.simulator import Traffic
from simpe.simulators.network.writer import write

FEW = 2000


def tcp(packets: int) -> Flows:
    """Connections of six packets each."""
    traffic = Traffic()
    p = traffic.random(packets // 6, torch.Generator().manual_seed(0))
    fixed = {"profile": NAMES.index("scan"), "outcome": 0, "server_role": 1, "ip_version": 0}
    return traffic.flows({name: torch.full_like(x, fixed[name]) if name in fixed else x for name, x in p.items()})


def udp(packets: int) -> Flows:
    """Floods of 200 packets each."""
    traffic = Traffic()
    p = traffic.random(packets // 200, torch.Generator().manual_seed(0))
    fixed = {"profile": NAMES.index("flood"), "server_port": 40_000, "server_role": 1, "ip_version": 0}
    fixed |= {"packets_out": 200, "packets_in": 0.25, "bytes_out": 200, "bytes_in": 0.25}
    return traffic.flows({name: torch.full_like(x, fixed[name]) if name in fixed else x for name, x in p.items()})


def objects(layer: type, path: Path) -> int:
    """FEW packets by scapy."""
    packets = []
    for i in range(FEW):
        transport = TCP(sport=50_000, dport=80, seq=i, flags="A") if layer is TCP else UDP(sport=50_000, dport=80)
        packet = (
            Ether(src="02:00:0a:00:00:01", dst="02:00:00:00:00:01") / IP(src="10.0.0.1", dst="198.18.0.1") / transport
        )
        packet.time = 1_700_000_000 + i / 1000
        packets.append(packet)
    wrpcap(str(path), packets)
    return FEW


def rate(work: Callable[[], int]) -> tuple[float, float]:
    """Packets a second of wall time and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    packets = work()
    return packets / (time.perf_counter() - wall), packets / (time.process_time() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; packets a second, wall (processor) time")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "capture.pcap"
        for name, flows, layer in (("TCP", tcp(arguments.packets), TCP), ("UDP", udp(arguments.packets), UDP)):
            write(path, flows)
            runs = [
                (rate(lambda f=flows: write(path, f)), rate(lambda x=layer: objects(x, path)))
                for _ in range(arguments.runs)
            ]
            ours, theirs = ([statistics.median(run[side][k] for run in runs) for k in (0, 1)] for side in (0, 1))
            ratios = [statistics.median(run[0][k] / run[1][k] for run in runs) for k in (0, 1)]
            print(
                f"{name}: simpe {ours[0]:,.0f} ({ours[1]:,.0f}), scapy {theirs[0]:,.0f} ({theirs[1]:,.0f}), "
                f"ratio {ratios[0]:.0f} ({ratios[1]:.0f})"
            )


if __name__ == "__main__":
    main()
