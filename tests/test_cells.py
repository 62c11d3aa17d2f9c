"""Cells of flows: public, whole, and of each row alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpe.embedders.flows import ROW
from simpe.marginals import LABEL
from simpe.simulators.network import evaluation
from simpe.simulators.network.cells import SIZES, cells, marginals
from simpe.simulators.network.simulator import Traffic

NUMBERS = ("duration", "packets", "bytes_out", "bytes_in")


def traffic(n=3000):
    simulator = Traffic()
    p = simulator.random(n, torch.Generator().manual_seed(1))
    return simulator.render(p), simulator.flows(p)


def test_cells_equal_those_of_the_evaluation():
    rows, flows = traffic()
    found = dict(zip(SIZES, cells(rows).numpy().T, strict=True))
    protocol = flows["protocol"]
    services = evaluation.services(protocol, flows["server_port"])
    half = (SIZES["kind"] - 4) // 2
    other = {1: 0, 58: 1, 2: 2}
    by_hand = [
        service if number == 6 else service + half if number == 17 else 2 * half + other.get(number, 3)
        for number, service in zip(protocol.tolist(), services.tolist(), strict=True)
    ]
    assert found["kind"].tolist() == by_hand
    assert len(set(by_hand)) > 50
    for name in NUMBERS:
        edges = evaluation.AMOUNTS[name.partition("_")[0]][1]
        parts = ("packets_out", "packets_in") if name == "packets" else (name,)
        exact = sum(rows[:, ROW.index(part)].numpy() for part in parts) * (1e3 if name == "duration" else 1)
        assert np.array_equal(found[name], np.digitize(exact, edges))
    assert np.array_equal(found["outcome"], flows["outcome"])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_row_has_cells_within_their_sizes_whatever_stands_beside_it(data):
    n = data.draw(st.integers(1, 40))
    whole = {
        "protocol": 255, "ip_version": 6, "server_port": 65535, "client_role": 3, "server_role": 3, "outcome": 6,
        "ttl_out": 255, "ttl_in": 255, "window_out": 65535, "window_in": 65535, "mss": 65535, "client": 70000,
    }  # fmt: skip
    columns = []
    for name in ROW:
        if name in whole:
            values = st.integers(0, whole[name]).map(float)
        else:
            values = st.floats(0, 1) if name == "start" else st.floats(0, 1e12)
        columns.append(data.draw(st.lists(values, min_size=n, max_size=n)))
    rows = torch.tensor(columns, dtype=torch.float64).T
    found = cells(rows)
    marginals(timed=True).check(samples=rows)
    alone = torch.cat([cells(rows[i : i + 1]) for i in range(n)])
    assert torch.equal(found, alone)
    reordered = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cells(rows[reordered]), found[reordered])


def test_a_row_in_no_cell_is_refused():
    rows, _ = traffic(5)
    rows[0, ROW.index("outcome")] = 9
    with pytest.raises(ValueError, match="outcome"):
        marginals(timed=False).check(rows)


def test_arrivals_are_counted_only_within_a_declared_window():
    assert ("start",) in marginals(timed=True).sets
    assert not any("start" in names for names in marginals(timed=False).sets)
    assert ("kind", LABEL) in marginals(timed=False).sets
