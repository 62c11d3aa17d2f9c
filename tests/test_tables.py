"""Flow tables: each tool's columns become ours; rows that cannot be read are dropped, and change no other."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpe.errors import InputError
from simpe.simulators.network import tables
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, Flows
from simpe.simulators.network.tables import Counts, Preset, read

NFSTREAM = """\
src_ip,src_port,dst_ip,dst_port,protocol,ip_version,bidirectional_first_seen_ms,bidirectional_duration_ms,\
src2dst_packets,src2dst_bytes,dst2src_packets,dst2src_bytes,bidirectional_mean_piat_ms,bidirectional_stddev_piat_ms,\
bidirectional_syn_packets,bidirectional_rst_packets,bidirectional_fin_packets,application_name,label,device
10.0.0.1,40000,10.0.0.2,443,6,4,1465478144924,494,8,679,9,1724,30.875,78.5,2,0,2,TLS,cam,"one, two"
2001:db8::1,5353,ff02::fb,5353,17,6,1465478144925,0,1,162,0,0,0,0,0,0,0,MDNS,plug,é
10.0.0.1,40001,10.0.0.2,81,6,4,1465478144926,5,1,54,1,54,5,0,1,1,0,Unknown,cam,
10.0.0.1,40002,10.0.0.2,82,6,4,1465478144926,0,1,54,0,0,0,0,1,0,0,Unknown,cam,
"""
ZEEK = """\
#separator \\x09
#set_separator\t,
#empty_field\t(empty)
#unset_field\t-
#path\tconn
#open\t2024-01-01-00-00-00
#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\tconn_state\
\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents
#types\ttime\tstring\taddr\tport\taddr\tport\tenum\tstring\tinterval\tcount\tcount\tstring\tbool\tbool\tcount\tstring\
\tcount\tcount\tcount\tcount\tset[string]
1591367999.305988\tCMd\t192.168.4.76\t36844\t192.168.4.1\t53\tudp\tdns\t0.066852\t62\t141\tSF\t-\t-\t0\tDd\t2\t118\t2\t197\t-
1591368000.5\tCab\t192.168.4.76\t46378\t31.3.245.133\t80\ttcp\thttp\t0.25411\t77\t295\tSF\t-\t-\t0\tShADadFf\t6\t397\t4\t511\t-
1591368001.5\tCac\t192.168.4.76\t46379\t31.3.245.133\t81\ttcp\t-\t-\t-\t-\tS0\t-\t-\t0\tS\t1\t60\t0\t0\t-
1591368002.5\tCad\t192.168.4.76\t8\t31.3.245.133\t0\ticmp\t-\t1.5\t56\t56\tOTH\t-\t-\t0\t-\t1\t84\t1\t84\t-
1591368002.5\tCae\tfe80::1\t46379\tfe80::2\t81\ttcp\t-\t2\t0\t0\tRSTRH\t-\t-\t0\t-\t1\t84\t1\t84\t-
#close\t2024-01-01-01-00-00
"""
NETFLOW = """\
srcip,dstip,srcport,dstport,proto,ts,td,pkt,byt,label,type
3232236033,167772161,50000,80,TCP,1458323190000000,2.5,5,500,0,background
167772161,3232236033,0,771,ICMP,1458323191000000,0,1,56,1,scan44
167772161,3232236033,53,1024,UDP,1458323192000000,0.0,1,128,0,background
"""
CIC = """\
Flow ID,Src IP,Src Port,Dst IP,Dst Port,Protocol,Timestamp,Flow Duration,Tot Fwd Pkts,Tot Bwd Pkts,TotLen Fwd Pkts,\
TotLen Bwd Pkts,Fwd Pkt Len Std,Bwd Pkt Len Std,Flow Byts/s,Flow IAT Mean,Flow IAT Std,FIN Flag Cnt,SYN Flag Cnt,\
RST Flag Cnt,Init Fwd Win Byts,Init Bwd Win Byts,Label
a,172.31.69.25,56958,18.219.211.138,8080,6,03/07/2017 02:55:58 PM,2500000,3,4,97,231,10.5,20.5,Infinity,\
100,200,2,2,0,8192,-1,Benign
b,172.31.69.25,56959,18.219.211.138,53,17,2018-02-16 08:24:11,1,1,1,10,20,0,0,1,1,0,0,0,0,-1,-1,Bot
"""
CIC2017 = """\
Flow ID, Source IP, Source Port, Destination IP, Destination Port, Protocol, Timestamp, Flow Duration,\
 Total Fwd Packets, Total Backward Packets,Total Length of Fwd Packets, Total Length of Bwd Packets, Fwd Header Length,\
 Fwd Header Length, Label
x,8.254.250.126,80,192.168.10.5,49188,6,3/7/2017 8:55,4,2,0,12,0,40,40,Web Attack \x96 XSS
"""
NFDUMP = """\
ts,te,td,sa,da,sp,dp,pr,flg,fwd,stos,ipkt,ibyt,opkt,obyt
2016-03-18 10:08:20.250,2016-03-18 10:08:30,10.000,10.1.1.1,10.2.2.2,40000,443,TCP,...AP.SF,0,0,10,1400,0,0
2016-03-18 10:08:21,2016-03-18 10:08:21,0.000,10.1.1.1,10.2.2.2,0,8.0,ICMP,........,0,0,1,84,0,0
2016-03-18 10:08:22,2016-03-18 10:08:22,0.000,10.1.1.1,10.2.2.2,40001,22,TCP,......S.,0,0,3,180,0,0
2016-03-18 10:08:22,2016-03-18 10:08:22,0.000,10.1.1.1,10.2.2.2,40001,22,TCP,...A.RS.,0,0,3,180,0,0
Summary
flows,bytes,packets,avg_bps,avg_pps,avg_bpp
4,1844,17,1,1,1
"""
NFDUMP_NEW = """\
firstSeen,duration,proto,srcAddr,srcPort,dstAddr,dstPort,packets,bytes,flows
2024-05-01 00:00:01.500,1.250,UDP,2001:db8::1,40000,2001:db8::2,53,2,176,1
"""

FLAT = {name: COLUMNS[name] for name in COLUMNS if name not in ("client", "server")}


def load(folder: Path, text: str | bytes, **options: Any) -> Flows:
    path = folder / "table"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, **options)


def check(flows: Flows, **columns: list[Any]) -> None:
    for name, expected in columns.items():
        found = [OUTCOMES[int(i)] for i in flows[name]] if name == "outcome" else flows[name].tolist()
        if all(isinstance(value, float) for value in expected):
            assert found == pytest.approx(expected), name
        else:
            assert found == expected, name


def refused(folder: Path, text: str | bytes, *parts: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        load(folder, text, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is None
    for part in parts:
        assert part in str(caught.value)


def test_nfstream(tmp_path: Path) -> None:
    counts = Counts()
    flows = load(tmp_path, NFSTREAM, counts=counts, extra={"device": "device"})
    assert {name: flows[name].dtype for name in FLAT} == {name: np.dtype(kind) for name, kind in FLAT.items()}
    check(
        flows,
        ip_version=[4, 6, 4, 4],
        protocol=[6, 17, 6, 6],
        client_port=[40000, 5353, 40001, 40002],
        server_port=[443, 5353, 81, 82],
        start=[1465478144.924, 1465478144.925, 1465478144.926, 1465478144.926],
        duration=[0.494, 0.0, 0.005, 0.0],
        packets_out=[8, 1, 1, 1],
        packets_in=[9, 0, 1, 0],
        bytes_out=[679 - 8 * 54, 100, 0, 0],
        bytes_in=[1724 - 9 * 54, 0, 0, 0],
        gap_mean=[0.030875, 0.0, 0.005, 0.0],
        gap_std=[0.0785, 0.0, 0.0, 0.0],
        outcome=["SF", "-", "REJ", "S0"],
        application=["TLS", "MDNS", "Unknown", "Unknown"],
        label=["cam", "plug", "cam", "cam"],
        device=["one, two", "é", "", ""],
    )
    assert flows["client"][0].tobytes() == bytes(10) + b"\xff\xff\x0a\0\0\1"
    assert flows["server"][1].tobytes() == b"\xff\x02" + bytes(13) + b"\xfb"
    assert (counts.files, counts.rows, counts.dropped) == (1, 4, 0)


def test_zeek(tmp_path: Path) -> None:
    counts = Counts()
    flows = load(tmp_path, ZEEK, counts=counts)
    check(
        flows,
        protocol=[17, 6, 6, 1, 6],
        ip_version=[4, 4, 4, 4, 6],
        client_port=[36844, 46378, 46379, 8, 46379],
        server_port=[53, 80, 81, 0, 81],
        start=[1591367999.305988, 1591368000.5, 1591368001.5, 1591368002.5, 1591368002.5],
        duration=[0.066852, 0.25411, 0.0, 1.5, 2.0],
        bytes_out=[62, 77, 0, 56, 0],
        bytes_in=[141, 295, 0, 56, 0],
        packets_out=[2, 6, 1, 1, 1],
        outcome=["-", "SF", "S0", "-", "OTH"],
        application=["dns", "http", "", "", ""],
        gap_mean=[0.066852 / 3, 0.25411 / 9, 0.0, 1.5, 2.0],
    )
    assert (counts.rows, counts.dropped) == (5, 0)


def test_netflow_of_netshare(tmp_path: Path) -> None:
    flows = load(tmp_path, NETFLOW)
    check(
        flows,
        protocol=[6, 1, 17],
        start=[1458323190.0, 1458323191.0, 1458323192.0],
        client_port=[50000, 3, 53],
        server_port=[80, 3, 1024],
        duration=[2.5, 0.0, 0.0],
        packets_out=[5, 1, 1],
        packets_in=[0, 0, 0],
        bytes_out=[300, 28, 100],
        outcome=["OTH", "-", "-"],
        label=["background", "scan44", "background"],
    )
    assert flows["client"][0, 12:].tolist() == [192, 168, 2, 1]


def test_cicflowmeter(tmp_path: Path) -> None:
    check(
        load(tmp_path, CIC),
        start=[1499093758.0, 1518769451.0],
        duration=[2.5, 1e-6],
        packets_out=[3, 1],
        packets_in=[4, 1],
        bytes_out=[97, 10],
        size_std_out=[10.5, 0.0],
        gap_std=[200e-6, 0.0],
        window_out=[8192, 0],
        window_in=[0, 0],
        outcome=["SF", "-"],
        label=["Benign", "Bot"],
    )
    check(
        load(tmp_path, CIC2017.encode("latin1")),
        start=[1499072100.0],
        packets_out=[2],
        bytes_out=[12],
        label=["Web Attack � XSS"],
    )


def test_nfdump(tmp_path: Path) -> None:
    counts = Counts()
    check(
        load(tmp_path, NFDUMP, counts=counts),
        start=[1458295700.25, 1458295701.0, 1458295702.0, 1458295702.0],
        client_port=[40000, 8, 40001, 40001],
        server_port=[443, 0, 22, 22],
        bytes_out=[1000, 56, 60, 60],
        outcome=["SF", "-", "S0", "RSTO"],
    )
    assert (counts.rows, counts.dropped) == (7, 3)
    check(load(tmp_path, NFDUMP_NEW), start=[1714521601.5], bytes_out=[80], ip_version=[6], duration=[1.25])


def test_our_own(tmp_path: Path) -> None:
    flows = load(tmp_path, NFSTREAM)
    out = {name: flows[name] for name in FLAT if name != "outcome"}
    out |= {"client": np.array(["1.2.3.4"] * 4), "server": np.array(["5.6.7.8"] * 4)}
    out["outcome"] = np.array([OUTCOMES[int(i)] for i in flows["outcome"]])
    pq.write_table(pa.table(out), tmp_path / "own")
    back = read(tmp_path / "own")
    for name in FLAT.keys() - {"ip_version"}:
        assert np.array_equal(back[name], flows[name]), name


@pytest.mark.parametrize("text", [NFSTREAM, NETFLOW, CIC, NFDUMP_NEW])
def test_parquet_and_gzip_are_as_csv(tmp_path: Path, text: str) -> None:
    import pyarrow.csv

    plain = load(tmp_path, text)
    packed = load(tmp_path, gzip.compress(text.encode()))
    table = pyarrow.csv.read_csv(pa.BufferReader(text.encode()))
    for version in (table, table.cast(pa.schema([(n, pa.string()) for n in table.column_names]))):
        pq.write_table(version, tmp_path / "p")
        found = read(tmp_path / "p")
        for name in plain:
            assert np.array_equal(plain[name], packed[name]), name
            assert np.allclose(plain[name], found[name]) if name in COLUMNS else (plain[name] == found[name]).all(), (
                name
            )


MINE = Preset(
    {"client": "who", "server_port": "port", "protocol": "p", "packets_out": "n", "duration": "ms", "unit": "team"},
    scale={"duration": 1e-3},
)


def test_a_mapping(tmp_path: Path) -> None:
    flows = load(tmp_path, "who;port;p;n;ms;team\n1.2.3.4;80;tcp;3;500;red\n\n1.2.3.5;81;sctp;1;0;blue\n", preset=MINE)
    check(flows, server_port=[80, 81], protocol=[6, 132], duration=[0.5, 0.0], unit=["red", "blue"])
    assert flows["server"].tolist() == [[0] * 16] * 2
    assert flows["start"].tolist() == [0, 0]
    refused(tmp_path, "who;port;p;n;ms\n", "no column 'team' for unit", preset=MINE)
    refused(tmp_path, NFSTREAM, "no column 'nowhere' for label", extra={"label": "nowhere"})
    refused(tmp_path, NFSTREAM, "no column", preset="zeek")
    refused(tmp_path, NFSTREAM, "preset 'argus': use one of simpe, nfstream", preset="argus")


def test_rows_that_cannot_be_read_are_dropped_one_by_one(tmp_path: Path) -> None:
    header, first, *_ = NFSTREAM.splitlines()
    good = first.split(",")
    bad = {
        0: ["10.0.0", "10.0.0.256", "", "x", "::1", "4294967296", "é", "1" * 500],
        1: ["-1", "65536", "1e9"],
        4: ["", "256", "-", "?!"],
        6: ["-5", "inf", "", "99/99/2020 10:00", "1e300"],
        7: ["-1", "1e999"],
        8: ["-3", "1e300"],
        18: ["L" * 65],
    }
    lines = [",".join([*good[:at], value, *good[at + 1 :]]) for at, values in bad.items() for value in values]
    lines += ["a,b,c", ",".join(good) + ",more"]
    counts = Counts()
    mixed = load(tmp_path, "\n".join([header, first, *lines, first]) + "\n", counts=counts)
    alone = load(tmp_path, "\n".join([header, first, first]) + "\n")
    assert all(np.array_equal(mixed[name], alone[name]) for name in alone)
    assert (counts.rows, counts.dropped) == (2 + len(lines), len(lines))
    odd = ",".join([*good[:2], *good[2:7], "", "", "", "", "", "x", "", "", "", "", *good[17:]])
    check(load(tmp_path, f"{header}\n{odd}\n"), duration=[0.0], packets_out=[0], gap_mean=[0.0])


@settings(max_examples=40, deadline=None)
@given(
    other=st.lists(st.lists(st.text(alphabet="0159.:-eE/TUDP ü\x00", max_size=9), min_size=11, max_size=11), max_size=6)
)
def test_other_rows_change_no_row(tmp_path_factory: pytest.TempPathFactory, other: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("t")
    header, *lines = NETFLOW.splitlines()
    counts = Counts()
    mixed = load(folder, "\n".join([header, *map(",".join, other), *lines]) + "\n", counts=counts)
    alone = load(folder, NETFLOW)
    kept = len(mixed["start"]) - 3
    assert counts.dropped == counts.rows - 3 - kept
    for name in alone:
        assert np.array_equal(mixed[name][kept:], alone[name]), name


def test_dates_before_and_after(tmp_path: Path) -> None:
    header, _ = NFDUMP_NEW.splitlines()
    for text, seconds in {
        "2000-02-29 23:59:59.999": 951868799.999,
        "2024-05-01T00:00:01Z": 1714521601.0,
        "1/2/2003 12:00 AM": 1044057600.0,
        "1/2/2003 12:30:01 PM": 1044102601.0,
        "1458323190000": 1458323190.0,
        "1458323190000000000": 1458323190.0,
    }.items():
        check(load(tmp_path, f"{header}\n{text},1,6,1.1.1.1,1,2.2.2.2,2,2,176,1\n"), start=[seconds])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "", "holds no table")
    refused(tmp_path, "\n\n", "holds no table")
    refused(tmp_path, "a,b,c\n1,2,3\n", "is no table of simpe, nfstream, zeek", "mapping")
    refused(tmp_path, b"PAR1" + bytes(100), "damaged")
    refused(tmp_path, gzip.compress(NFSTREAM.encode())[:-9], "damaged")
    refused(tmp_path, NFSTREAM + "x" * (1 << 24), "damaged")
    refused(tmp_path, b"\xd4\xc3\xb2\xa1" + bytes(200), "no table")
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot be read|no such"):
        read(tmp_path)
    with pytest.raises(InputError, match="no input"):
        read([])
    header = NFSTREAM.splitlines()[0]
    empty = load(tmp_path, header + "\n")
    assert {len(column) for column in empty.values()} == {0}
    assert empty.keys() >= COLUMNS.keys()


def test_a_table_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_ROWS", 3)
    refused(tmp_path, NFSTREAM, "more than 3 rows")


def test_several_tables(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path, text in zip(paths, (NFSTREAM, "hello", NETFLOW, NFDUMP_NEW), strict=True):
        path.write_text(text)
    counts = Counts()
    flows = read(paths, counts=counts)
    assert len(flows["start"]) == 4 + 3 + 1
    assert (counts.files, len(counts.unusable)) == (3, 1)
    assert flows["label"].tolist()[3:] == ["cam", "background", "scan44", "background", ""]


def test_no_message_holds_a_value(tmp_path: Path) -> None:
    mark = "MARKED77.66.55.44"
    for text in (mark, f"{mark},{mark}\n1,2\n", NFSTREAM + '"' + mark, f"PAR1{mark * 9}", NFSTREAM + mark * (1 << 19)):
        try:
            load(tmp_path, text)
        except InputError as error:
            message = str(error)
        else:
            message = ""
        assert "MARKED" not in message
        assert "77.66" not in message


def test_reading_imports_no_torch() -> None:
    code = (
        "import sys; from simpe.simulators.network import capture, flows, tables; "
        "sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(tmp_path, NFSTREAM, "simpe[network]")


@pytest.mark.data
def test_iot_sentinel_flows() -> None:
    path = Path(os.environ.get("SIMPE_DATA", ""), "network", "iot_sentinel_flows.csv")
    if "SIMPE_DATA" not in os.environ or not path.is_file():
        pytest.skip("set SIMPE_DATA to a folder that holds network/iot_sentinel_flows.csv")
    counts = Counts()
    flows = read(path, extra={"file": "file"}, counts=counts)
    assert (counts.rows, counts.dropped) == (9942, 0)
    assert len(set(flows["label"].tolist())) == 31
    assert 0.3 < np.mean(flows["outcome"] == OUTCOMES.index("SF")) < 0.5
