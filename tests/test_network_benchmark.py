"""The network benchmark's codes: rivals get tables whose rows come back in the bins that they left in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from simpe.simulators.network.evaluation import compare
from simpe.simulators.network.schema import empty


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "benchmarks" / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bins", [8, 14, 32])
def test_decoded_rows_lie_in_the_bins_of_their_codes(benchmark: ModuleType, bins: int) -> None:
    cuts, classes = benchmark.edges(bins), ("bulb", "cam")
    rng = np.random.default_rng(0)
    _, sizes = benchmark.encode(
        {**empty(0), "application": np.array([], "U9"), "label": np.array([], "U9")}, cuts, classes
    )
    codes = (rng.random((5000, 9)) * sizes).astype(int)
    codes[:, 0] = np.where(codes[:, 1] == sizes[1] - 1, 2 + codes[:, 0] % 4, codes[:, 0] % 2)  # TCP and UDP have ports
    again, same = benchmark.encode(benchmark.decode(codes, cuts, classes, 0), cuts, classes)
    assert (again == codes).all()
    assert (same == sizes).all()
    assert (codes.max(axis=0) == sizes - 1).all()


def test_coding_costs_little_and_shuffled_codes_much(benchmark: ModuleType) -> None:
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 2, 2000)
    flows = {**empty(2000), "application": np.array(["TLS", "DNS"])[kind], "label": np.array(["bulb", "cam"])[kind]}
    flows["protocol"][:], flows["server_port"][:] = 6, np.array([443, 3000])[kind]
    for name in ("packets_out", "packets_in", "bytes_out", "bytes_in"):
        flows[name][:] = rng.geometric(np.array([0.5, 0.01])[kind])
    flows["duration"][:] = rng.exponential(np.array([0.1, 9])[kind])
    codes, _ = benchmark.encode(flows, benchmark.edges(14), ("bulb", "cam"))
    near, far = (
        compare(benchmark.decode(table, benchmark.edges(14), ("bulb", "cam"), 0), flows)
        for table in (codes, rng.permuted(codes, axis=0))
    )
    assert near["emd"] < 0.02
    assert near["tvd2"] < 0.1 < 0.3 < far["tvd2"]


def test_each_device_s_runs_are_split_in_natural_order(benchmark: ModuleType, tmp_path: Path) -> None:
    head = "src_ip,dst_ip,protocol,dst_port,src2dst_packets,bidirectional_duration_ms,file,label"
    rows = [f"10.0.0.1,9.9.9.9,6,80,{run},1,run-{run}.pcap,{device}" for device in "ab" for run in (10, 9, 1, 2, 11)]
    (tmp_path / "t.csv").write_text("\n".join([head, *rows]) + "\n")
    for split, private, test in (("development", {1, 2, 11}, {9}), ("final", {1, 2, 9, 11}, {10})):
        found = benchmark.parts(tmp_path / "t.csv", split)
        assert [set(part["packets_out"].tolist()) for part in found] == [private, test]
        assert set(found[0]["label"]) == set(found[1]["label"]) == {"a", "b"}
