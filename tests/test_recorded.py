"""The capture that comes with simpe: what it holds, that it tells nothing of where it was made, and its word."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from simpe import InputError
from simpe.config import read_config
from simpe.simulators.network import inputs
from simpe.simulators.network.profiles import SERVICES
from simpe.simulators.network.schema import OUTCOMES, Flows

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "simulators" / "network" / "recorded"
CAPTURE = FOLDER / "recorded.pcap.gz"
PUBLIC = [
    ip_network(prefix)
    for prefix in (
        "192.168.20.0/24", "198.51.100.0/24", "203.0.113.0/24", "fd20:53:4d::/64", "2001:db8::/32",  # hosts
        "0.0.0.0/32", "255.255.255.255/32", "224.0.0.0/24", "239.255.255.250/32", "::/128", "fe80::/64", "ff02::/16",
    )
]  # fmt: skip
SERVED = "http https dns dhcp dhcp-client ntp ssh ftp smtp imap pop3 mqtt snmp syslog sip mdns ssdp redis tftp http-alt"


@pytest.fixture(scope="module")
def read() -> tuple[Flows, inputs.Counts]:
    counts = inputs.Counts()
    return inputs.read([inputs.RECORDED], counts=counts), counts


@pytest.fixture(scope="module")
def content() -> bytes:
    return gzip.decompress(CAPTURE.read_bytes())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", FOLDER / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simpe(*arguments: object, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "simpe", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stderr
    return done


def frames(capture: bytes) -> Iterator[bytes]:
    at = 24
    while at < len(capture):
        (held,) = struct.unpack_from("<I", capture, at + 8)
        yield capture[at + 16 : at + 16 + held]
        at += 16 + held


def foreign(addresses: np.ndarray) -> list[IPv6Address]:
    """Addresses (n, 16) that are in none of the public prefixes."""
    found = [IPv6Address(address.tobytes()) for address in np.unique(addresses, axis=0)]
    return [one for one in found if not any((one.ipv4_mapped or one) in prefix for prefix in PUBLIC)]


def test_it_is_small_and_is_installed_with_the_package() -> None:
    assert CAPTURE.stat().st_size < 2_000_000
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    (pattern,) = settings["simpe.simulators.network"]
    assert list((ROOT / "simulators" / "network").glob(pattern)) == [CAPTURE]


def test_it_holds_many_flows_of_many_applications(read: tuple[Flows, inputs.Counts]) -> None:
    flows, _ = read
    assert len(flows["start"]) >= 1_500
    ports = dict(SERVICES)
    for name in SERVED.split():
        assert (flows["server_port"] == ports[name]).sum() >= 3, name
    for protocol in (1, 2, 6, 17, 58):
        assert (flows["protocol"] == protocol).any()
    assert 0.02 < (flows["ip_version"] == 6).mean() < 0.5


def test_tcp_ends_in_every_way(read: tuple[Flows, inputs.Counts]) -> None:
    flows, _ = read
    number = np.bincount(flows["outcome"], minlength=len(OUTCOMES))
    assert (number >= 5).all(), dict(zip(OUTCOMES, number, strict=True))


def test_nothing_is_damaged(read: tuple[Flows, inputs.Counts], content: bytes) -> None:
    packets = read[1].packets
    assert (packets.files, packets.damaged, packets.malformed, packets.fragments) == (1, 0, 0, 0)
    assert packets.other == sum(frame[12:14] == b"\x08\x06" for frame in frames(content))  # ARP


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_wireshark_finds_no_fault() -> None:
    checks = [word for name in ("ip", "tcp", "udp") for word in ("-o", f"{name}.check_checksum:TRUE")]
    faults = "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0"
    # A packet that it must find stands for those that it must not.
    words = ["tshark", "-n", "-r", str(CAPTURE), *checks, "-Y", f"frame.number == 7 || {faults}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.fullmatch(r" *7 .*\n", done.stdout)


def test_it_is_spread_over_the_window_that_the_readme_and_make_declare(read: tuple[Flows, inputs.Counts]) -> None:
    start = read[0]["start"]
    for text in ((ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()):
        declared = re.search(r"network recorded .*--window (\S+) (\d+)s ", text)
        assert declared is not None
        begin, length = datetime.fromisoformat(declared[1] + "+00:00").timestamp(), float(declared[2])
        assert (np.histogram(start, 10, (begin, begin + length))[0] > 150).all()
        assert (np.histogram(start, [begin, begin + length])[0] == len(start)).all()


def test_addresses_are_made_up(read: tuple[Flows, inputs.Counts], content: bytes, script: ModuleType) -> None:
    flows, _ = read
    assert foreign(np.concatenate([flows["client"], flows["server"]])) == []
    assert foreign(np.frombuffer(IPv6Address("::ffff:8.8.8.8").packed, np.uint8)[None])
    ours = bytes.fromhex(script.mac(0).replace(":", ""))[:5]
    assert {frame[6:11] for frame in frames(content)} == {ours}
    assert all(frame[:5] == ours or frame[0] & 1 for frame in frames(content))


def test_names_are_made_up(content: bytes, script: ModuleType) -> None:
    told = set(re.findall(rb"\x0c([\x02-\x20])([a-z]+-[0-9]+)", content))  # option 12 of DHCP
    names = {name.decode() for size, name in told if size[0] == len(name)}
    assert names
    assert names <= set(script.PERSONS)
    words = (b"/root", b"/home/", b"/tmp/", b"localhost")
    assert not [word for word in words if word in content]


def test_recording_keeps_lengths_and_refuses_to_name_the_machine(
    content: bytes, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gethostname", "getfqdn"):
        monkeypatch.setattr(socket, name, lambda: "elsewhere.invalid")
    assert script.cut(content) == content  # it was cut before, and cutting keeps all else
    at = 24 + 16 + len(next(frames(content)))
    first = bytearray(content[:at])
    first[24 + 8 : 24 + 16] = struct.pack("<II", 1400, 1514)
    whole = bytes(first) + bytes(1400 - (at - 40))
    assert struct.unpack_from("<II", script.cut(whole), 24 + 8) == (600, 1514)
    monkeypatch.setattr(socket, "gethostname", lambda: "office.internal")
    with pytest.raises(SystemExit, match="names this machine"):
        script.cut(content)


def test_the_word_makes_a_run_and_stays_a_word_in_its_configuration(tmp_path: Path) -> None:
    options = ("--epsilon", 1, "--flows", 60, "--steps", 1, "--out", "run")
    simpe("network", "recorded", *options, cwd=tmp_path)
    certificate = json.loads((tmp_path / "run" / "release" / "certificate.json").read_text())
    assert (certificate["private"], certificate["epsilon"]) == (True, 1.0)
    assert read_config(tmp_path / "run" / "private" / "config.toml").private == ("recorded",)
    assert (tmp_path / "run" / "release" / "synthetic.pcap").stat().st_size > 1000


def test_the_word_can_be_inspected(tmp_path: Path, read: tuple[Flows, inputs.Counts]) -> None:
    out = simpe("network", "inspect", "recorded", cwd=tmp_path).stdout
    assert f"{len(read[0]['start']):,}" in out


def test_a_file_of_that_name_is_not_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(inputs.read(["recorded"])["start"]) >= 1_500
    (tmp_path / "recorded").write_bytes(b"another")
    with pytest.raises(InputError, match=r"\./recorded"):
        inputs.read(["recorded"])
    for given in ("./recorded", tmp_path / "recorded", Path("recorded")):
        with pytest.raises(InputError, match="no capture"):
            inputs.read([given])
