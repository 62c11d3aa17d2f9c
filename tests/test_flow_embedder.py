"""The embedding of flows: constants only, exact whatever the batch, and without addresses."""

import numpy as np
import pytest
import torch

import simpe
from simpe.embedders import flows as module
from simpe.embedders.flows import ROW, FlowEmbedding
from simpe.simulators.network.profiles import SERVICES
from simpe.simulators.network.simulator import Traffic

EMBED = FlowEmbedding()


def some_rows(n=400, seed=0):
    traffic = Traffic()
    return traffic.render(traffic.random(n, torch.Generator().manual_seed(seed)))


def changed(name, value):
    """Squared distance between an ordinary row and one that differs in a column."""
    row = {"protocol": 6, "ip_version": 4, "server_port": 443, "packets_out": 9, "bytes_out": 900, "outcome": 1}
    rows = torch.tensor([[row.get(c, 0) for c in ROW], [{**row, name: value}.get(c, 0) for c in ROW]]).double()
    return float((EMBED(rows)[0] - EMBED(rows)[1]).square().sum())


def test_keeps_the_contract_of_an_embedder():
    bad = [str(finding) for finding in simpe.check_embedder(EMBED, some_rows()) if not finding.ok]
    assert bad == []


def test_a_row_is_the_same_in_any_batch():
    rows = some_rows()
    whole = EMBED(rows)
    for part in (slice(3, 4), slice(5, 26), slice(0, 400, 3)):
        assert torch.equal(EMBED(rows[part]), whole[part])
        assert torch.equal(EMBED(rows[part].contiguous()), whole[part])


def test_logarithm_is_that_of_numpy():
    x = np.concatenate([[0], 10 ** np.linspace(-12, 12, 20_001)])
    # One rounding of x + 1 and some of the series: a few units in the last place of 1.
    np.testing.assert_allclose(module.log1p(torch.from_numpy(x)).numpy(), np.log1p(x), rtol=1e-12, atol=4e-16)


def test_no_address_is_embedded():
    rows = some_rows()
    other = rows.clone()
    other[:, ROW.index("client")] = 77
    assert torch.equal(EMBED(rows), EMBED(other))


@pytest.mark.parametrize(
    ("name", "value", "weight"),
    [
        ("protocol", 17, "protocol"),
        ("outcome", 2, "outcome"),
        ("server_port", 80, "service"),
        ("server_role", 1, "role"),
    ],
)
def test_weights_say_how_far_categories_are_apart(name, value, weight):
    # Twice the squared weight, for a one-hot moves at two places; the float32 of the result rounds to 1e-7.
    assert changed(name, value) == pytest.approx(2 * getattr(EMBED, weight) ** 2, rel=1e-5)


def test_ports_are_known_by_the_frozen_table_or_their_class():
    assert changed("server_port", 443) == 0
    for port in (81, 1999, 60_000, *(port for _, port in SERVICES if port != 443)):
        assert changed("server_port", port) > 1
    classes = [torch.tensor([[{"protocol": 6, "server_port": port}.get(c, 0) for c in ROW]]).double() for port in
               (6000, 6001, 50_000, 50_001, 81, 82)]  # fmt: skip
    vectors = [EMBED(row) for row in classes]
    assert all(torch.equal(vectors[i], vectors[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(vectors[0], vectors[2])


@pytest.mark.parametrize(("shape", "dtype", "error"), [((4, 3), torch.float64, ValueError),
                                                        ((4, len(ROW)), torch.int64, TypeError)])  # fmt: skip
def test_what_are_no_rows_is_refused(shape, dtype, error):
    with pytest.raises(error):
        EMBED(torch.zeros(shape, dtype=dtype))
