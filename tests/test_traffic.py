"""The simulator of flows: any parameters make a possible flow, and a row depends on its own parameters alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import simpe
from simpe.embedders.flows import ROW
from simpe.simulators.network.profiles import NAMES, PROFILES, RESERVED, ROLES, SERVICES, STACKS
from simpe.simulators.network.schema import COLUMNS, OUTCOMES
from simpe.simulators.network.simulator import Traffic, rows_of

TRAFFIC = Traffic()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def anything(n, seed=0):
    """Parameters from the whole space, likely or not."""
    return TRAFFIC.space.sample(n, generator(seed))


def column(rows, name):
    return rows[:, ROW.index(name)]


def test_keeps_the_contract_of_a_simulator():
    bad = [str(finding) for finding in simpe.check_simulator(TRAFFIC, n=256) if not finding.ok]
    assert bad == []


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_any_parameters_make_a_possible_flow(seed):
    plan = TRAFFIC.plan(anything(500, seed))
    tcp = plan["protocol"] == 6
    outcome = {name: plan["outcome"] == index for index, name in enumerate(OUTCOMES)}
    assert torch.equal(outcome["-"], ~tcp)
    for way, other in (("out", "in"), ("in", "out")):
        packets, size, data = (plan[f"{name}_{way}"] for name in ("packets", "bytes", "data"))
        most = torch.where(tcp & ~outcome["OTH"], plan["mss"], 1460)
        assert bool((packets >= int(way == "out")).all())
        assert bool((data <= packets).all())
        assert torch.equal(size > 0, data > 0)
        assert bool((size <= data * most).all())
        assert bool((plan[f"long_{way}"] <= most).all())
        assert bool((plan[f"longs_{way}"] <= data).all())
        # What is no data acknowledges: each something new, beside the few of handshake and end.
        assert bool((packets - data - 4 <= plan[f"data_{other}"])[tcp & ~outcome["S0"]].all())
    assert bool((plan["packets_in"][outcome["S0"]] == 0).all())
    assert bool(((plan["packets_in"] == 1) & (plan["packets_out"] == 1))[outcome["REJ"]].all())
    assert bool((plan["packets_in"][plan["server_role"] >= ROLES.index("multicast")] == 0).all())
    assert bool((plan["bytes_out"] == plan["bytes_in"])[(plan["packets_out"] == plan["packets_in"]) & icmp(plan)].all())
    gaps = plan["packets_out"] + plan["packets_in"] - 1
    assert bool(((plan["duration"] == 0) | (gaps > 0)).all())
    for longest in ("long_gap", "rtt", "short_gap"):
        assert bool((plan[longest] < TRAFFIC.idle).all())
    assert bool((plan["duration"] < TRAFFIC.active).all())
    assert bool(
        ((plan["start"] >= 0) & (plan["start"] * TRAFFIC.length + plan["duration"] <= TRAFFIC.length + 1e-6)).all()
    )


def icmp(plan):
    return (plan["protocol"] == 1) | (plan["protocol"] == 58)


def test_ports_belong_to_their_profiles():
    p = anything(50_000)
    p["server_port"][:25_000] %= 10_000
    plan = TRAFFIC.plan(p)
    for index, profile in enumerate(PROFILES):
        ports = set(plan["server_port"][plan["profile"] == index].tolist())
        if not profile.anywhere:
            assert ports <= set(profile.ports or (0,)), profile.name
        elif profile.name != "scan":
            assert not ports & (RESERVED[profile.protocol] - set(profile.ports)), profile.name


def test_the_tables_are_sound():
    assert len(set(NAMES)) == len(NAMES)
    assert len({port for _, port in SERVICES}) == len({name for name, _ in SERVICES}) == len(SERVICES)
    own = [(f.protocol, port) for f in PROFILES for port in f.ports]
    assert len(set(own)) == len(own)  # a port names one application
    assert [stack.serves for stack in STACKS] == sorted((stack.serves for stack in STACKS), reverse=True)
    for f in PROFILES:
        if f.protocol == 6:  # the opening message fits the smallest segment
            assert max(f.least) <= min(stack.mss for stack in STACKS) - 20, f.name


def test_random_draws_every_profile_outcome_and_role():
    rows, plan = TRAFFIC.render(p := TRAFFIC.random(20_000, generator())), TRAFFIC.plan(p)
    assert set(plan["profile"].tolist()) == set(range(len(PROFILES)))
    for name, values in (("outcome", range(7)), ("server_role", range(4)), ("client_role", range(2))):
        assert set(column(rows, name).tolist()) == set(values)
    web = column(rows, "server_port") == 80
    assert 0.02 < float(web.double().mean()) < 0.06  # a 30th of the profiles


def test_settling_is_settled():
    p = TRAFFIC.random(5000, generator())
    plan = TRAFFIC.plan(p)
    again = {**p, **{name: plan[name].float() for name in ("packets_out", "packets_in", "bytes_out", "bytes_in")}}
    again = {name: value.clamp(min=0.25) if value.is_floating_point() and name != "start" else value
             for name, value in again.items()}  # fmt: skip
    again |= {name: p[name] for name in p if name.startswith("size_spread") or name == "gap_spread"}
    settled = TRAFFIC.plan(again)
    for name in ("packets_out", "packets_in", "bytes_out", "bytes_in", "server_port", "outcome", "data_out"):
        assert torch.equal(settled[name], plan[name]), name


def test_rows_do_not_touch_each_other():
    p = anything(300)
    whole = TRAFFIC.render(p)
    for part in (slice(0, 1), slice(17, 40), slice(101, 300, 7)):
        assert torch.equal(TRAFFIC.render({name: x[part] for name, x in p.items()}), whole[part])


def test_variation_stays_near_and_a_new_profile_brings_its_port():
    p = TRAFFIC.random(4000, generator())
    before, near = TRAFFIC.render(p), TRAFFIC.render(TRAFFIC.variation(p, 0.1, generator(1)))
    far = TRAFFIC.render(TRAFFIC.variation(p, 1.0, generator(1)))
    embed = TRAFFIC.embedder
    step = [(embed(x) - embed(before)).norm(dim=1).median() for x in (near, far)]
    assert float(step[0]) < 0.4 < float(step[1])


def test_no_two_flows_share_addresses_and_ports():
    p = TRAFFIC.random(20_000, generator(3))
    p["client"] %= 2  # crowded
    flows = TRAFFIC.flows(p)
    keys = np.concatenate(
        [flows["client"], flows["server"]]
        + [flows[name].astype("<u2")[:, None].view(np.uint8) for name in ("client_port", "server_port", "protocol")],
        axis=1,
    )
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_more_flows_than_clients_are_refused():
    p = anything(300)
    p["profile"][:] = NAMES.index("icmp")
    p["client_role"][:] = 0
    p["ip_version"][:] = 0
    Traffic(internal="10.9.0.0/16").flows(p)
    with pytest.raises(ValueError, match="wider internal prefix"):
        Traffic(internal="10.9.9.0/24").flows(p)


@pytest.mark.parametrize(
    "settings",
    [
        {"length": 0},
        {"start": -1},
        {"idle": 0},
        {"internal": "10.0.0.0/29"},
        {"internal": "fd00::/64"},
        {"internal": "x"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        Traffic(**settings)


def test_rows_of_a_table_are_the_rows_of_its_parameters():
    traffic = Traffic(start=1e9, length=7200, internal="192.168.0.0/17")
    p = TRAFFIC.random(3000, generator(5))
    rows = rows_of(traffic.flows(p), traffic.start, traffic.length, [traffic.internal, traffic.internal_v6])
    keep = [name != "client" for name in ROW]  # a flow without an ephemeral port may get another client
    torch.testing.assert_close(rows[:, keep], traffic.render(p)[:, keep], rtol=1e-6, atol=1e-6)


def test_rows_of_read_nothing_off_the_data():
    flows = TRAFFIC.flows(TRAFFIC.random(500, generator()))
    declared = (TRAFFIC.start, TRAFFIC.length, [TRAFFIC.internal])
    whole = rows_of(flows, *declared)
    assert torch.equal(rows_of({name: value[37:38] for name, value in flows.items()}, *declared), whole[37:38])
    assert rows_of({name: value[:0] for name, value in flows.items()}, *declared).shape == (0, len(ROW))


def test_roles_follow_the_declared_prefixes():
    from ipaddress import ip_address

    wanted = {
        "10.1.2.3": "internal", "192.0.2.1": "external", "239.1.1.1": "multicast", "255.255.255.255": "broadcast",
        "10.255.255.255": "broadcast", "fd00::1": "internal", "2001:db8::1": "external", "ff02::fb": "multicast",
        "fe80::1": "internal", "0.0.0.0": "internal",
    }  # fmt: skip
    flows = {name: np.zeros(len(wanted), dtype=dtype) for name, dtype in COLUMNS.items()}
    packed = [ip_address(address).packed for address in wanted]
    flows["server"] = np.array(
        [list(a if len(a) == 16 else bytes(10) + b"\xff\xff" + a) for a in packed], dtype=np.uint8
    )
    rows = rows_of(flows, 0, 1, ["10.0.0.0/8", "fd00::/8"])
    assert [ROLES[int(role)] for role in column(rows, "server_role")] == list(wanted.values())
    with pytest.raises(ValueError, match="positive"):
        rows_of(flows, 0, 0, ["10.0.0.0/8"])
