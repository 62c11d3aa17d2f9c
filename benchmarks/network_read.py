"""Reading captures: packets a second beside scapy and dpkt in one run, and memory on a large capture.

    python benchmarks/network_read.py CAPTURE... [--rounds 5] [--packets 20000] [--gigabytes 2]

CAPTURE are Ethernet pcap files or folders of them; their packets are put into one file. Each round times every reader
once, one after the other, so that a busy machine slows all of them; ratios are of the medians. scapy and dpkt read
``--packets`` of the packets, simpe the same and, as "packets and flows", its flows too. With ``--gigabytes`` a capture
of that size is made by repeating, read in a process of its own, and deleted. Prints one JSON object.
"""

import argparse
import io
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dpkt
from scapy.config import conf
from scapy.layers import inet, inet6, l2  # noqa: F401  (what rdpcap dissects)
from scapy.utils import rdpcap

from simpe.simulators.network import capture, flows

HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)


def join(paths: list[Path], packets: int | None = None) -> bytes:
    """One pcap file of the packets of several."""
    out = io.BytesIO()
    writer = dpkt.pcap.Writer(out, snaplen=262144)
    files = [f for path in paths for f in (sorted(path.rglob("*.pcap")) if path.is_dir() else [path])]
    for file in files:
        with file.open("rb") as stream:
            for stamp, frame in dpkt.pcap.Reader(stream):
                writer.writepkt(frame, stamp)
                if packets is not None:
                    packets -= 1
                    if packets == 0:
                        return out.getvalue()
    return out.getvalue()


def with_dpkt(path: Path) -> int:
    n = 0
    with path.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            dpkt.ethernet.Ethernet(frame)
            n += 1
    return n


def with_simpe(path: Path) -> int:
    counts = capture.Counts()
    for _ in capture.read(path, counts):
        pass
    return counts.packets


def with_flows(path: Path) -> int:
    counts = capture.Counts()
    flows.assemble(capture.read(path, counts))
    return counts.packets


def speed(path: Path, rounds: int) -> dict[str, float]:
    readers: dict[str, Callable[[Path], int]] = {
        "scapy rdpcap": lambda p: len(rdpcap(str(p))),
        "dpkt": with_dpkt,
        "packets": with_simpe,
        "packets and flows": with_flows,
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    n = 0
    for _ in range(rounds):
        for name, reader in readers.items():
            begin = time.perf_counter()
            n = reader(path)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {f"{name}: packets/s": round(n / median) for name, median in medians.items()}
    for name in ("packets", "packets and flows"):
        for rival in ("scapy rdpcap", "dpkt"):
            result[f"{name}: times {rival}"] = round(medians[rival] / medians[name], 1)
    return result


def memory(one: bytes, gigabytes: float) -> dict[str, float]:
    """Peak memory and time of reading a capture of that size, and of one a sixteenth of it."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in (gigabytes / 16, gigabytes):
            path = Path(folder, "large.pcap")
            with path.open("wb") as file:
                file.write(HEADER)
                while file.tell() < size * 1e9:
                    file.write(one[len(HEADER) :])
            command = [sys.executable, __file__, str(path), "--peak"]
            result |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def peak(path: Path) -> dict[str, float]:
    begin = time.perf_counter()
    counts = capture.Counts()
    n = len(flows.assemble(capture.read(path, counts))["start"])
    return {
        f"{path.stat().st_size / 1e9:.2f} GB": {
            "packets": counts.packets,
            "flows": n,
            "seconds": round(time.perf_counter() - begin, 1),
            "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", type=Path, nargs="+", metavar="CAPTURE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=20_000)
    parser.add_argument("--gigabytes", type=float, default=0.0)
    parser.add_argument("--peak", action="store_true", help="only read the first capture, and tell time and memory")
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak(arguments.captures[0])))
        return
    conf.verb = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "few.pcap")
        path.write_bytes(join(arguments.captures, arguments.packets))
        result: dict[str, object] = {"rounds": arguments.rounds, **speed(path, arguments.rounds)}
    if arguments.gigabytes:
        result["memory"] = memory(join(arguments.captures), arguments.gigabytes)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
