"""Figures of network traffic: known values, ten-line references, and twins that are broken in one way each."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from support import addressed_noise

from simpe import InputError, runs
from simpe.config import make_config
from simpe.simulators.network.evaluation import AMOUNTS, applications, bins, compare, services, utility
from simpe.simulators.network.profiles import NAMES, NDPI, SERVICES, application
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, Flows, empty

NAMED = ("application", "label")


def traffic(n: int = 400, seed: int = 0) -> Flows:
    """Flows of three devices; which one it is shows in port, size and duration."""
    rng = np.random.default_rng(seed)
    flows = empty(n)
    kind = rng.integers(0, 3, n)
    flows["protocol"][:] = np.array([6, 17, 6])[kind]
    flows["server_port"][:] = np.array([443, 53, 80])[kind]
    flows["client_port"][:] = rng.integers(49_152, 65_536, n)
    flows["outcome"][:] = np.where(kind == 1, 0, rng.integers(1, 4, n))
    flows["client"][:, 15] = rng.integers(1, 9, n) ** 2 // 9
    flows["server"][:, 15] = kind + rng.integers(0, 2, n)
    flows["duration"][:] = rng.exponential(np.array([5.0, 0.02, 0.5])[kind])
    for way in ("out", "in"):
        flows[f"packets_{way}"][:] = 1 + rng.poisson(np.array([9, 1, 4])[kind])
        flows[f"bytes_{way}"][:] = flows[f"packets_{way}"] * rng.integers(20, 1400, n)
    flows["application"] = np.array(["TLS.Google", "DNS", "HTTP"])[kind]
    flows["label"] = np.array(["cam", "bulb", "plug"])[kind]
    return flows


def changed(flows: Flows, **columns: object) -> Flows:
    return {**flows, **{name: np.broadcast_to(value, flows[name].shape) for name, value in columns.items()}}


def test_a_table_is_at_distance_zero_of_its_own_rows_in_any_order_or_number() -> None:
    flows = traffic()
    order = np.random.default_rng(1).permutation(800) % 400
    found = compare({name: column[order] for name, column in flows.items()}, flows)
    assert found.keys() == TWINS.keys() | OVER_ALL
    for value in found.values():
        assert value == pytest.approx(0, abs=1e-12)


def test_tables_with_nothing_in_common_are_at_distance_one() -> None:
    found = compare(*disjoint())
    ones = [name for name in found if name.startswith("jsd_") and name not in ("jsd_clients", "jsd_servers")]
    assert len(ones) == 7
    for name in (*ones, "tvd2", "top_ports_missed"):
        assert found[name] == pytest.approx(1), name
    for name in found:
        if name.startswith("emd"):
            assert found[name] == pytest.approx(1), name


def disjoint() -> tuple[Flows, Flows]:
    low = changed(traffic(50), protocol=6, server_port=80, client_port=50_000, outcome=1, duration=0, application="SSH")
    high = changed(traffic(70), protocol=17, server_port=53, client_port=68, outcome=0, duration=1e9, application="DNS")
    low, high = changed(low, label="a"), changed(high, label="b")
    for way in ("out", "in"):
        low |= {f"packets_{way}": low["packets_out"] * 0, f"bytes_{way}": low["packets_out"] * 0}
        high |= {f"packets_{way}": high["packets_out"] * 0 + 10**9, f"bytes_{way}": high["packets_out"] * 0 + 10**9}
    return low, high


TWINS = {
    "jsd_protocol": {"protocol": 17},
    "jsd_service": {"server_port": 22},
    "jsd_server_port": {"server_port": 22},
    "top_ports_missed": {"server_port": 22},
    "jsd_client_port": {"client_port": 68},
    "jsd_outcome": {"outcome": OUTCOMES.index("RSTR")},
    "jsd_application": {"application": "NTP"},
    "jsd_label": {"label": "kettle"},
    "jsd_clients": {"client": 7},
    "jsd_servers": {"server": 7},
    "top_clients_bytes": {"client": np.arange(400)[:, None] % 200},
    "top_servers_bytes": {"server": np.arange(400)[:, None] % 200},
    "emd_duration": {"duration": 100.0},
    "emd_packets": {"packets_out": 500},
    "emd_packets_out": {"packets_out": 500},
    "emd_packets_in": {"packets_in": 500},
    "emd_bytes": {"bytes_in": 10**6},
    "emd_bytes_out": {"bytes_out": 10**6},
    "emd_bytes_in": {"bytes_in": 10**6},
}
TWINS |= {name.replace("emd_", "ks_"): twin for name, twin in TWINS.items() if name.startswith("emd_")}
TWINS |= {f"chi_{name}": TWINS[f"jsd_{name}"] for name in ("protocol", "service", "application", "label")}
TWINS |= {f"chi_{name}": TWINS[f"emd_{name}"] for name in ("duration", "packets", "bytes_out", "bytes_in")}
OVER_ALL = {"emd", "tvd1", "tvd2", "tvd3", "correlation_difference"}


@pytest.mark.parametrize("name", TWINS)
def test_each_figure_sees_the_twin_that_is_broken_in_its_column_only(name: str) -> None:
    flows = traffic()
    found = compare(changed(flows, **TWINS[name]), flows)
    assert found[name] > 0.1
    column = next(iter(TWINS[name]))
    moved = {other for other, value in found.items() if value > 1e-12} - OVER_ALL
    both_ways = column.partition("_")[0]
    expected = {other for other, twin in TWINS.items() if column in twin}
    expected |= {f"{kind}_{both_ways}" for kind in ("emd", "ks", "chi")}
    if column == "protocol":  # outcomes are TCP's, and only TCP and UDP have ports
        expected |= {"jsd_service", "chi_service", "jsd_outcome", "jsd_client_port", "top_ports_missed"}
    assert moved <= expected


def test_divergence_is_that_of_scipy_and_ranks_forget_who_is_who() -> None:
    flows, other = traffic(seed=0), traffic(300, seed=5)
    found = compare(flows, other)
    values = np.union1d(flows["label"], other["label"])
    shares = [[(table["label"] == value).mean() for value in values] for table in (flows, other)]
    assert found["jsd_label"] == pytest.approx(jensenshannon(*shares, base=2) ** 2, abs=1e-12)
    ranks = [np.sort([(t["client"][:, 15] == i).mean() for i in range(256)])[::-1] for t in (flows, other)]
    assert found["jsd_clients"] == pytest.approx(jensenshannon(*ranks, base=2) ** 2, abs=1e-12)
    renamed = changed(flows, client=255 - flows["client"])
    assert compare(renamed, flows)["jsd_clients"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("duration", 0.1, 3.0), ("packets_in", 3, 50), ("bytes_out", 9, 999)]
)
def test_earth_mover_s_distance_of_a_shift_is_the_shift(name: str, low: float, high: float) -> None:
    flows = traffic()
    cap, unit = AMOUNTS[name.partition("_")[0]][0], 1e3 if name == "duration" else 1
    wanted = (np.log1p(high * unit) - np.log1p(low * unit)) / np.log1p(cap)
    found = compare(changed(flows, **{name: low}), changed(flows, **{name: high}))
    assert found[f"emd_{name}"] == pytest.approx(wanted)
    half = changed(flows, **{name: np.where(np.arange(400) % 2, low, high)})
    assert compare(changed(flows, **{name: low}), half)[f"emd_{name}"] == pytest.approx(wanted / 2)


def test_two_way_distance_is_the_plain_computation() -> None:
    flows, other = traffic(200), traffic(300, seed=3)
    one, two = bins(flows), bins(other)
    found = []
    for a, b in combinations(one, 2):
        pairs = [list(zip(table[a].tolist(), table[b].tolist(), strict=True)) for table in (one, two)]
        found.append(sum(abs(pairs[0].count(p) / 200 - pairs[1].count(p) / 300) for p in {*pairs[0], *pairs[1]}) / 2)
    assert len(found) == 28
    assert compare(flows, other)["tvd2"] == pytest.approx(np.mean(found), abs=1e-12)


def test_two_way_distance_sees_what_one_way_figures_do_not() -> None:
    flows = traffic()
    flows["label"] = np.random.default_rng(0).permutation(flows["label"])
    found = compare(flows, traffic())
    assert found["jsd_label"] == pytest.approx(0, abs=1e-12)
    assert found["tvd2"] > 0.05


def test_bins_are_public_and_cover_everything() -> None:
    flows = empty(14)
    for name in ("packets_out", "packets_in", "bytes_out", "bytes_in"):
        flows[name][:] = [0, *AMOUNTS[name.partition("_")[0]][1]]
    flows["packets_in"][:] = 0
    flows["duration"][:] = np.array([0, *AMOUNTS["duration"][1]]) / 1e3
    for name in ("duration", "packets", "bytes_out", "bytes_in"):
        assert bins(flows)[name].tolist() == list(range(14))


def test_services_are_those_of_the_table_or_classes_of_ports() -> None:
    port = np.array([443, 1, 1024, 60_000, 49_152, 443])
    names = [*(name for name, _ in SERVICES), "well-known", "registered", "ephemeral", "none"]
    found = services(np.array([6, 17, 6, 6, 6, 1]), port)
    assert [names[i] for i in found] == ["https", "well-known", "registered", "ephemeral", "upnp", "none"]


def test_applications_have_public_names() -> None:
    names = np.array(["TLS.Google", "AWS_EC2", "ICMPV6", "SMBv23", "ssl", "tcp", "", "Zqx", "http"])
    assert applications(names).tolist() == ["tls", "other", "icmp", "smb", "tls", "other", "other", "other", "http"]
    assert NDPI.keys() < set(NAMES)
    for profile, name in NDPI.items():
        assert application(name) == application(profile) == {"dhcp-server": "dhcp"}.get(profile, profile)


def test_figures_of_missing_columns_are_left_out() -> None:
    columns = ("protocol", "server_port", "duration", "packets_out", "packets_in", "bytes_out", "bytes_in")
    few = {name: traffic()[name] for name in columns}
    found = compare(few, traffic())
    assert {"jsd_service", "emd", "tvd2", "top_ports_missed"} < found.keys()
    assert not found.keys() & {"jsd_clients", "jsd_outcome", "jsd_label", "jsd_application", "top_servers_bytes"}
    with pytest.raises(ValueError, match="at least one"):
        compare(empty(0), traffic())


def test_a_forest_learns_what_there_is_and_nothing_from_shuffled_labels() -> None:
    flows, test = traffic(seed=0), traffic(seed=1)
    shuffled = changed(flows, label=np.random.default_rng(0).permutation(flows["label"]))
    for target in NAMED:
        found = utility(shuffled if target == "label" else flows, test, target, train=flows)
        assert found["real_macro_f1"] > 0.95
        assert found["real_accuracy"] > 0.95
        assert found["majority"] == np.unique(test["label"], return_counts=True)[1].max() / 400
        assert (found["macro_f1"] < 0.6) == (target == "label")
    # The twin whose amounts tell nothing: what is left is the port, or without ports the protocol, which knows DNS.
    blind = {**flows} | {name: flows[name] * 0 + 1 for name in flows if name[:5] in ("durat", "packe", "bytes")}
    assert utility(blind, test, "application")["accuracy"] > 0.95
    assert utility(blind, test, "application", ports=False)["accuracy"] < 0.85


def test_the_smaller_task_has_the_most_frequent_classes_of_the_test_rows() -> None:
    flows, test = traffic(600), traffic(600, seed=1)
    rare = np.where(np.arange(600) % 6, test["label"], np.char.add("rare", (np.arange(600) % 18).astype(str)))
    found = utility(flows, changed({**test, "label": rare.astype("U20")}, label=rare), "label")
    assert found["accuracy"] < 0.85 < 0.95 < utility(flows, test, "label")["accuracy_top8"]
    only = utility(changed(flows, label="elsewhere"), test, "label")
    assert (only["macro_f1_top8"], only["accuracy_top8"], only["macro_f1"]) == (0, 0, 0)


TABLE = "client,server,protocol,server_port,packets_out,packets_in,bytes_out,bytes_in,duration,start,application,kind\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [
        f"10.0.0.{i % 9},9.9.9.9,{(6, 17)[i % 2]},{(443, 53)[i % 2]},{(9, 1)[i % 2]},{(9, 1)[i % 2]},"
        f"{(2000, 40)[i % 2]},{(9000, 90)[i % 2]},{(3, 0.01)[i % 2]},1600000000,{('TLS', 'DNS')[i % 2]},"
        f"{('tv', 'web')[i % 2]}"
        for i in range(120)
    ]
    (folder / "t.csv").write_text(TABLE + "\n".join(rows) + "\n")
    (folder / "bare.csv").write_text("\n".join(line.rsplit(",", 2)[0] for line in [TABLE.strip(), *rows]) + "\n")
    config = make_config(
        simulator="network", private=(str(folder / "t.csv"),), out=folder / "run", epsilon=8.0, samples=90, steps=2,
        unit="flow", classes=("tv", "web"), options={"labels": "kind"},
    )  # fmt: skip
    runs.start(config, noise=addressed_noise)
    return folder


def test_evaluate_measures_a_run_of_traffic_and_keeps_it_private(run: Path) -> None:
    command = [sys.executable, "-m", "simpe", "evaluate", "run", "--against", "t.csv", "--task", "classify"]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == json.loads((run / "run" / "private" / "metrics.json").read_text())
    assert found["differentially_private"] is False
    assert (found["rows"], found["reference_rows"]) == (90, 120)
    assert {"tvd2", "emd", "jsd_label", "jsd_application", "jsd_clients"} < found["distances"].keys()
    assert set(found["classify"]) == {*NAMED, "application_without_ports"}
    assert found["classify"]["label"]["majority"] == 0.5
    assert not (run / "run" / "release" / "metrics.json").exists()


def test_a_reference_without_names_is_compared_without_them(run: Path) -> None:
    said: list[str] = []
    found = runs.evaluate(
        run / "run", (str(run / "bare.csv"), str(run / "run" / "release" / "synthetic.pcap")),
        progress=lambda what, *_: said.append(what),
    )  # fmt: skip
    assert found["reference_rows"] == 210
    assert not found["distances"].keys() & {"jsd_label", "jsd_application"}
    assert any("'kind'" in line for line in said)
    with pytest.raises(InputError, match="--task classify"):
        runs.evaluate(run / "run", (str(run / "bare.csv"),), task="classify")
    with pytest.raises(InputError, match="--task must be"):
        runs.evaluate(run / "run", (str(run / "bare.csv"),), task="rank")


def test_the_released_table_names_each_flow_s_application(run: Path) -> None:
    from simpe.simulators.network import tables

    for name in ("flows.csv", "flows.parquet"):
        flows = tables.read(run / "run" / "release" / name)
        assert set(flows["application"]) <= set(NAMES)
        assert set(flows) == {*COLUMNS, *NAMED}
        assert (flows["protocol"][np.isin(flows["application"], ("dns", "ntp", "quic"))] == 17).all()
