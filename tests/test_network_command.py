"""`simpe network`: from captures to a run folder that holds nothing of them but what was paid for."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import addressed_noise

from simpe import InputError, runs
from simpe.config import make_config
from simpe.simulators.network import capture, inputs, tables
from simpe.simulators.network.flows import assemble
from simpe.simulators.network.profiles import SERVICES
from simpe.simulators.network.traces import START, Traces

MARKS = (b"\xc1\x07\xd9\x63", b"\xc1\x07\xd9\x64", b"zqxmarkedhost", b"ZQXPAYLOADMARK")
TEXTS = (b"193.7.217.99", b"193.7.217.100", b"c107d963", b"c107d964")
PRIVATE_PORT = 777  # below 1024 and in no table, so it can only come from the input
EPOCH = 1_600_000_000
FLOWS = 150


def udp(source: bytes, target: bytes, ports: tuple[int, int], body: bytes) -> bytes:
    segment = struct.pack(">HHHH", *ports, 8 + len(body), 0) + body
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 17, 0) + source + target
    return bytes(12) + b"\x08\x00" + ip + segment


def pcap(frames: list[tuple[float, bytes]]) -> bytes:
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for seconds, frame in frames:
        out += struct.pack("<IIII", EPOCH + int(seconds), int(seconds % 1 * 1e6), len(frame), len(frame)) + frame
    return out


def queries(number: int = FLOWS, clients: int = 10) -> list[tuple[float, bytes]]:
    """DNS-like flows of some clients with a marked one, all with marked payloads, to a marked server and port."""
    frames = []
    for i in range(number):
        client = MARKS[0] if i % clients == 0 else bytes([10, 0, 0, i % clients])
        port = PRIVATE_PORT if i % 3 == 0 else 53
        body = b"\x0d" + MARKS[2] + b"\x00" + MARKS[3]
        frames.append((float(i), udp(client, MARKS[1], (30_000 + i, port), body)))
        frames.append((i + 0.25, udp(MARKS[1], client, (port, 30_000 + i), body * 3)))
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network")
    (path / "a.pcap").write_bytes(pcap(queries()))
    (path / "zqxmarkedhost.txt").write_bytes(b"no capture: ZQXPAYLOADMARK")
    rows = ["client,server,protocol,server_port,packets_out,packets_in,duration,start,user,label"]
    rows += [
        f"10.0.0.{i % 9},9.9.9.9,6,443,5,4,0.5,{EPOCH + i},u{i % 30},{'web' if i % 2 else 'tv'}" for i in range(90)
    ]
    rows += [f"10.0.0.1,9.9.9.9,6,443,5,4,0.5,{EPOCH},,web"]  # of nobody
    (path / "t.csv").write_text("\n".join(rows) + "\n")
    return path


def simpe(*arguments: object, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "simpe", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, str]:
    options = ("--epsilon", 8, "--delta", 1e-5, "--flows", 120, "--steps", 2, "--out", "run", "--compare")
    done = simpe("network", "a.pcap", "zqxmarkedhost.txt", *options, cwd=folder)
    return folder / "run", done.stdout + done.stderr


def config(folder: Path, out: str, *names: str, **options: object) -> object:
    values = {"simulator": "network", "epsilon": 8.0, "samples": 40, "steps": 2, "unit": "flow"} | options
    return make_config(private=tuple(str(folder / name) for name in names), out=folder / out, **values)


def certificate(path: Path) -> dict:
    return json.loads((path / "release" / "certificate.json").read_text())


def test_the_release_holds_a_capture_its_flows_and_a_picture(finished: tuple[Path, str]) -> None:
    release = finished[0] / "release"
    names = {"synthetic.pcap", "flows.parquet", "flows.csv", "traffic.png", "samples.npz", "certificate.json"}
    names |= {"figures.json", "evolution.json", "history.npz"}
    assert {path.name for path in release.iterdir()} == names
    for panel in json.loads((release / "evolution.json").read_text()):
        assert list(panel["series"]) == ["random", "step 1", "step 2"]
        assert all(0.5 < sum(shares) < 1.001 for shares in panel["series"].values())
    counts = capture.Counts()
    parsed = assemble(capture.read(release / "synthetic.pcap", counts))
    assert counts.other == counts.malformed == counts.damaged == 0
    for table in (release / "flows.csv", release / "flows.parquet"):
        flows = tables.read(table, "simpe")
        assert len(flows["start"]) == 120
        assert (np.diff(flows["start"]) >= 0).all()
        assert flows["start"].min() >= START
        assert (flows["start"] + flows["duration"]).max() <= START + 3600 + 1e-6
        ours = {(*flows["client"][i], *flows["server"][i], flows["client_port"][i]) for i in range(120)}
        theirs = {(*parsed["client"][i], *parsed["server"][i], parsed["client_port"][i]) for i in range(120)}
        assert ours == theirs
    assert (finished[0] / "private" / "comparison.png").is_file()


def test_the_certificate_says_what_is_protected_and_what_is_not(finished: tuple[Path, str]) -> None:
    found = certificate(finished[0])
    assert found["private"] is True
    assert (found["unit"], found["k"], found["epsilon"]) == ("flow", 1, 8.0)
    assert found["statement"].endswith("adding or removing one flow")
    assert any("one flow" in caveat for caveat in found["caveats"])
    assert any("No window was declared" in caveat for caveat in found["caveats"])
    settings = found["public_inputs"]["simulator"]["settings"]
    assert settings["window"] == [START, 3600.0]
    assert str(finished[0].parent) not in json.dumps(found)


def test_nothing_marked_in_the_input_comes_out(folder: Path, finished: tuple[Path, str]) -> None:
    planted = (folder / "a.pcap").read_bytes()
    said = finished[1].replace("zqxmarkedhost.txt", "")  # the name of an input is the operator's own
    for mark in MARKS:
        assert mark in planted
    for content in [said.encode(), *(path.read_bytes() for path in (finished[0] / "release").iterdir())]:
        for mark in (*MARKS, *TEXTS):
            assert mark not in content
    with np.load(finished[0] / "release" / "samples.npz") as arrays:
        for name in arrays:
            assert not any(mark in arrays[name].tobytes() for mark in MARKS)


def test_only_ports_of_public_domains_come_out(finished: tuple[Path, str]) -> None:
    flows = tables.read(finished[0] / "release" / "flows.csv", "simpe")
    with_ports = np.isin(flows["protocol"], (6, 17))
    server, client = flows["server_port"][with_ports], flows["client_port"][with_ports]
    public = [port for _, port in SERVICES]
    assert PRIVATE_PORT not in server
    assert np.isin(server[server < 1024], public).all()
    assert (np.isin(client, public) | (client >= 55_000)).all()


def test_unusable_inputs_are_counted_and_left_out(folder: Path, finished: tuple[Path, str]) -> None:
    assert "1 inputs that are unusable" in finished[1]
    said = simpe("network", "zqxmarkedhost.txt", "nothing.pcap", "--out", "never", cwd=folder, expect=2).stderr
    assert said.strip().splitlines()[-1].startswith("simpe: error: none of the inputs is usable")
    assert not (folder / "never").exists()


def test_flows_default_to_the_noisy_count(folder: Path) -> None:
    release = runs.start(config(folder, "counted", "a.pcap", samples=None), noise=addressed_noise)
    record = next(record for record in release.ledger.releases() if record["address"] == "0/counts")
    assert len(release.samples) == record["counts"][0]
    assert abs(len(release.samples) - FLOWS) < 30
    assert certificate(folder / "counted")["public_inputs"]["samples"] == "the noisy count"


def test_a_resumed_run_releases_the_same_bytes(folder: Path) -> None:
    runs.start(config(folder, "again", "a.pcap"), noise=addressed_noise)
    release = folder / "again" / "release"
    before = {path.name: path.read_bytes() for path in release.iterdir()}
    shutil.rmtree(release)
    runs.resume(folder / "again", noise=addressed_noise)
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before


@pytest.mark.parametrize(
    ("unit", "source", "number", "caveat"),
    [
        ("src", "a.pcap", 10, "the servers that it talks to"),
        ("pair", "a.pcap", 10, "does with several others"),
        ("window:50", "a.pcap", 30, "within 50 seconds"),
        ("user", "t.csv", 30, "declared column 'user'"),
    ],
)
def test_units_own_flows(folder: Path, unit: str, source: str, number: int, caveat: str) -> None:
    remarks: list[str] = []
    out = f"unit-{unit.partition(':')[0]}"
    release = runs.start(
        config(folder, out, source, unit=unit, k=4, samples=None),
        noise=lambda sigma, n, address: np.zeros(n, dtype=np.int64), progress=lambda what, *_: remarks.append(what),
    )  # fmt: skip
    assert len(release.samples) == 4 * number
    found = certificate(folder / out)
    assert (found["unit"], found["k"], found["accounting"]) == (unit, 4, "zCDP")
    assert any(caveat in said for said in found["caveats"])
    assert any(f"about {number} units" in said for said in remarks)


def test_a_row_s_unit_follows_from_its_own_flow(folder: Path) -> None:
    flows = inputs.read([folder / "a.pcap", folder / "t.csv"])
    some = {name: column[::3] for name, column in flows.items()}
    for unit in ("src", "pair", "window"):
        whole, part = inputs.units(flows, unit), inputs.units(some, unit)
        assert whole is not None
        assert part is not None
        assert (whole[::3] == part).all()
    swapped = flows | {"client": flows["server"], "server": flows["client"]}
    assert (inputs.units(swapped, "pair") == inputs.units(flows, "pair")).all()


def test_labels_of_a_table_are_declared_and_released(folder: Path) -> None:
    options = {"labels": "label"}
    runs.start(config(folder, "labelled", "t.csv", classes=("web", "tv"), options=options), noise=addressed_noise)
    flows = tables.read(folder / "labelled" / "release" / "flows.csv", "simpe")
    assert set(flows["label"]) == {"web", "tv"}
    with pytest.raises(InputError, match="--classes"):
        runs.start(config(folder, "never", "t.csv", options=options))


def test_a_declared_window_keeps_what_starts_within_and_compares_times(folder: Path) -> None:
    timed = Traces(**inputs.window("2020-09-13T12:26:40", "1m"))
    assert (timed.start, timed.length) == (EPOCH, 60)
    remarks: list[str] = []
    rows = timed.read((str(folder / "a.pcap"),), "flow", lambda what, *_: remarks.append(what))
    assert len(rows.samples) == 60
    assert f"left out: {FLOWS - 60} flows outside --window" in remarks
    assert np.ptp(rows.samples[:, 6]) > 0.9
    untimed = Traces().read((str(folder / "a.pcap"),), "flow", lambda *_: None)
    assert len(untimed.samples) == FLOWS
    assert np.ptp(untimed.samples[:, 6]) == 0
    with pytest.raises(InputError, match="--window"):
        Traces(**inputs.window("0", "1s")).read((str(folder / "a.pcap"),), "flow", lambda *_: None)


def test_declared_prefixes_are_where_synthetic_hosts_live(folder: Path) -> None:
    runs.start(config(folder, "inside", "a.pcap", options=inputs.internal(["172.20.0.0/16"])), noise=addressed_noise)
    flows = tables.read(folder / "inside" / "release" / "flows.csv", "simpe")
    inside = (flows["ip_version"] == 4) & (flows["client"][:, 12] == 172) & (flows["client"][:, 13] == 20)
    assert inside.any()
    assert not (flows["client"][:, 12] == 10).any()
    narrow = inputs.internal(["172.20.0.0/24", "fd00:1::/64"])
    assert narrow == {
        "inside": ["172.20.0.0/24", "fd00:1::/64"],
        "internal": "172.20.0.0/24",
        "internal_v6": "fd00:1::/64",
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--unit", "colour"], "colour"),
        (["--unit", "window:0"], "--unit"),
        (["--unit", "flow", "--k", "3"], "--k"),
        (["--internal", "10.0.0.0/99"], "--internal"),
        (["--window", "soon", "1h"], "--window"),
        (["--window", "2020-01-01", "long"], "--window"),
        (["--flows", "0"], "samples"),
        (["--unit", "src", "--flows", "40"], "--flows"),
        (["--unit", "src", "--k", "0"], "k must be"),
        (["--sessions", "40"], "--sessions"),
        (["--epsilon", "0"], "--epsilon"),
        (["--labels", "label"], "label"),
        (["--preset", "wireshark"], "preset"),
    ],
)
def test_bad_options_are_one_line_that_names_them(
    folder: Path, options: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from simpe import cli

    source = "t.csv" if "--preset" in options else "a.pcap"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["simpe", "network", source, "--out", "never", *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("simpe: error: ")]
    assert stop.value.code == 2
    assert len(said) == 1
    assert named in said[0]
    assert not (folder / "never").exists()


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else object())
    with pytest.raises(InputError, match=r"pip install 'simpe\[network\]'"):
        Traces().read((str(folder / "a.pcap"),), None, lambda *_: None)


def test_inspect_says_what_a_capture_holds(folder: Path) -> None:
    out = simpe("network", "inspect", "a.pcap", "t.csv", cwd=folder).stdout
    assert f"{FLOWS + 91}" in out
    assert "53 dns" in out
    assert str(PRIVATE_PORT) in out
    assert "2020-09-13 12:26:40" in out


def test_inspect_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; sys.argv = ['simpe', 'network', 'inspect', 'a.pcap']\n"
        "import simpe.cli\n"
        "try: simpe.cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ)
