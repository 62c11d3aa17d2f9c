"""Sessions: a row is a host, `embed(parse(render(theta)))` is `embed(theta)`, and what holds of hosts survives."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from support import addressed_noise
from test_network_command import MARKS, TEXTS, certificate, pcap, queries
from test_network_command import simpe as command
from test_writer import STREAM, dissected, tool

import simpe
from simpe import InputError, runs
from simpe.config import make_config
from simpe.embedders.flows import ROW
from simpe.embedders.sessions import SESSION, SessionEmbedding
from simpe.population import public_generator
from simpe.simulators.network import inputs, tables, writer
from simpe.simulators.network.profiles import NAMES
from simpe.simulators.network.schema import COLUMNS, OUTCOMES, empty
from simpe.simulators.network.sessions import SLOTS, Sessions, gather
from simpe.simulators.network.traces import write_tables

SESSIONS = Sessions()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(n, seed=0, parameters=None, packets=30, flows=60):
    """Parameters of sessions whose capture is small."""
    p = (parameters or SESSIONS.random)(n, generator(seed))
    for g in range(SLOTS):
        for way in ("out", "in"):
            p[f"packets_{way}_{g}"] = p[f"packets_{way}_{g}"].clamp(max=packets)
    p["flows"] = p["flows"].clamp(max=flows)
    return p


def silent(*_):
    pass


def column(sessions, name):
    return sessions[:, :, SESSION.index(name)]


def number_of_flows(sessions):
    return column(sessions, "flows")[:, 0]


# --- the simulator


class Crowded(Sessions):
    """Few flows in many groups, so that a small batch shows what every parameter does."""

    def random(self, n, generator):
        p = super().random(n, generator)
        return p | {"groups": torch.where(p["groups"] == 1, SLOTS, p["groups"]), "flows": p["flows"].clamp(max=50)}


def test_keeps_the_contract_of_a_simulator():
    bad = [str(finding) for finding in simpe.check_simulator(Crowded(k=8, timed=True), n=96) if not finding.ok]
    assert bad == []


@pytest.mark.parametrize("parameters", [SESSIONS.random, SESSIONS.space.sample])
@pytest.mark.parametrize("timed", [False, True])
def test_a_capture_reads_back_as_its_parameters(tmp_path, parameters, timed):
    sessions = Sessions(k=24, timed=timed)  # fewer than some have
    p = small(200, seed=5, parameters=parameters, packets=12)
    flows = sessions.table(p)
    writer.write(tmp_path / "a.pcap", flows)
    read = torch.from_numpy(sessions.read((str(tmp_path / "a.pcap"),), "src", silent).samples)
    clients = inputs.units(flows, "src")[np.unique(flows["session"], return_index=True)[1]]
    planned = sessions.render(p)[torch.from_numpy(np.argsort(clients))]
    assert read.shape == planned.shape == (200, 24, len(SESSION))
    for name in ("flows", "servers", "after_dns", "protocol", "server_port", "client_role", "server_role", "outcome"):
        assert torch.equal(column(read, name), column(planned, name)), name
    for name in ("span", "since", "again", "duration"):  # times in a capture are whole microseconds
        torch.testing.assert_close(column(read, name), column(planned, name), rtol=1e-6, atol=3e-6)
    off = (sessions.embedder(read) - sessions.embedder(planned)).abs().max()
    assert float(off) < 1e-4
    moved = read.roll(1, dims=1)  # the check sees one flow that is out of its place
    assert float((sessions.embedder(moved) - sessions.embedder(planned)).abs().max()) > 1e-2


def test_rows_do_not_touch_each_other():
    p = SESSIONS.random(60, generator())
    whole = SESSIONS.render(p)
    embedded = SESSIONS.embedder(whole)
    for part in (slice(0, 1), slice(17, 40), slice(3, 60, 7)):
        rows = SESSIONS.render({name: x[part] for name, x in p.items()})
        assert torch.equal(rows, whole[part])
        assert torch.equal(SESSIONS.embedder(rows), embedded[part])


def test_random_is_broad():
    p = SESSIONS.random(3000, generator())
    rows = SESSIONS.render(p)
    flows, servers = number_of_flows(rows), column(rows, "servers")[:, 0]
    for values in (flows, servers):
        assert float(values.min()) == 1
        assert float((values < 5).double().mean()) > 0.1
        assert float((values > 100).double().mean()) > 0.02
    assert bool((flows >= servers).all())
    assert 0.02 < float((column(rows, "client_role")[:, 0] == 1).double().mean()) < 0.15
    assert 0.05 < float((column(rows, "ip_version")[:, 0] == 6).double().mean()) < 0.25
    assert 0.1 < float((column(rows, "after_dns").sum(1) > 0).double().mean()) < 0.9


def test_a_session_has_one_address():
    p = SESSIONS.space.sample(500, generator(1))
    p["flows"] = p["flows"].clamp(max=40)
    flows = SESSIONS.flows(p)
    pairs = np.unique(np.column_stack([flows["session"], flows["client"]]), axis=0)
    assert len(pairs) == len(np.unique(flows["client"], axis=0)) == len(np.unique(flows["session"])) == 500


def test_no_two_flows_that_share_addresses_and_ports_are_near_in_time():
    p = SESSIONS.space.sample(1000, generator(2))
    fixed = torch.tensor([NAMES.index(name) for name in ("dhcp", "mdns", "icmp", "netbios", "igmp", "dns")])
    for g in range(SLOTS):  # most have no ports of their own choice
        p[f"profile_{g}"] = torch.where(p["seed"] % 3 > 0, fixed[p[f"profile_{g}"] % 6], p[f"profile_{g}"])
    flows = SESSIONS.flows(p)
    ports = [flows[name].astype("<u2")[:, None].view(np.uint8) for name in ("client_port", "server_port", "protocol")]
    key = np.ascontiguousarray(np.concatenate([flows["client"], flows["server"], *ports], axis=1))
    _, key = np.unique(key.view(f"V{key.shape[1]}").ravel(), return_inverse=True)
    order = np.lexsort((flows["start"], key))
    again = key[order][1:] == key[order][:-1]
    end = flows["start"] + flows["duration"]
    assert again.sum() > 100
    assert float((flows["start"][order][1:] - end[order][:-1])[again].min()) > SESSIONS.idle * 1.05


def test_more_sessions_than_addresses_get_wider_prefixes():
    p = small(400, flows=3)
    narrow = Sessions(internal="192.168.7.0/24")
    assert len(np.unique(narrow.flows(p)["client"], axis=0)) == 400
    few = narrow.flows({name: value[:40] for name, value in p.items()})
    inside = (few["client_role"] == 0) & (few["ip_version"] == 4)
    assert (few["client"][inside][:, 12:15] == [192, 168, 7]).all()


def test_variation_stays_near_and_a_small_one_tells_of_its_parent():
    p = SESSIONS.random(400, generator())
    embed = SESSIONS.embedder
    before = embed(SESSIONS.render(p))
    near, far = (embed(SESSIONS.render(SESSIONS.variation(p, s, generator(1)))) for s in (0.1, 1.0))
    apart = (before - before.flip(0)).norm(dim=1).median()
    assert float((near - before).norm(dim=1).median()) < 0.25 * float(apart)
    assert 0.4 * float(apart) < float((far - before).norm(dim=1).median())


@pytest.mark.parametrize("options", [{"k": 0}, {"length": 0}, {"internal": "x"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError):
        Sessions(**options)


# --- rows of a table


def reference(rows, owner, start, server, k):
    """What gather does, flow by flow."""
    out = []
    for who in range(max(owner) + 1):
        mine = sorted((i for i in range(len(owner)) if owner[i] == who), key=lambda i: start[i])
        service = [(*rows[i, [0, 2]], server[i]) for i in mine]
        session = []
        for place, i in enumerate(mine):
            past = [j for j in range(place) if service[j] == service[place]]
            dns = [s[:2] == (17, 53) for s in service]
            session.append(
                [*rows[i], len(mine), len({s[2] for s in service}), start[mine[-1]] - start[mine[0]],
                 start[i] - start[mine[place - 1]] if place else 0,
                 max(start[i] - start[mine[past[-1]]], 1e-6) if past else 0,
                 place > 0 and dns[place - 1] and not dns[place]]
            )  # fmt: skip
        kept = session if len(session) <= k else [session[place * len(session) // k] for place in range(k)]
        out.append(kept + [[0.0] * len(SESSION)] * (k - len(kept)))
    return np.array(out, dtype=np.float64)


def some_rows(rng, m, hosts):
    rows = rng.random((m, len(ROW)))
    rows[:, ROW.index("protocol")] = rng.choice([6, 17, 17], m)
    rows[:, ROW.index("ip_version")] = 4
    rows[:, ROW.index("server_port")] = rng.choice([53, 53, 443], m)
    owner = np.append(np.arange(hosts), rng.integers(0, hosts, m - hosts))
    return rows, rng.permutation(owner), rng.integers(0, 40, m) / 8.0, rng.integers(0, 4, m)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_rows_are_gathered_as_one_by_one(seed, m, k):
    rng = np.random.default_rng(seed)
    table = some_rows(rng, m, int(rng.integers(1, m + 1)))
    np.testing.assert_array_equal(gather(*table, k), reference(*table, k))


def test_no_rows_are_no_sessions():
    none = np.zeros(0, dtype=np.int64)
    assert gather(np.zeros((0, len(ROW))), none, none.astype(float), none, 5).shape == (0, 5, len(SESSION))


def made(hosts, seed=0):
    """A flow table of hosts of three kinds, and which kind each host is: a beacon, a browser, and a quiet one."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, hosts, p=[0.3, 0.1, 0.6])
    number = np.choose(kind, [rng.integers(40, 60, hosts), rng.integers(80, 160, hosts), rng.integers(2, 5, hosts)])
    host = np.repeat(np.arange(hosts), number)
    turn = np.arange(len(host)) - np.repeat(np.cumsum(number) - number, number)
    flows, m, k = empty(len(host)), len(host), kind[host]
    flows["client"][:, 10:12] = 255
    flows["client"][:, 12:] = np.stack([np.full(m, 10), np.full(m, 1), host // 250, host % 250 + 1], axis=1)
    flows["server"][:, 10:12] = 255
    query = (k == 1) & (turn % 2 == 0)  # a browser asks before it connects
    server = np.select([query, k == 1], [0, 1 + turn % 40], 200)
    flows["server"][:, 12:] = np.stack([np.full(m, 9), np.full(m, 9), k, server], axis=1)
    flows["ip_version"][:] = 4
    udp = query | (k == 2)
    flows["protocol"] = np.where(udp, 17, 6).astype(np.uint8)
    flows["server_port"] = np.select([query, k == 1, k == 0], [53, 443, 1883], 123).astype(np.uint16)
    flows["client_port"] = (50_000 + turn).astype(np.uint16)
    burst = 30.0 * (turn // 10) + 0.02 * (turn % 10)
    flows["start"] = 1.6e9 + 7 * host + np.select([k == 0, k == 1], [60.0 * turn, burst], 200.0 * turn)
    flows["duration"] = np.where(udp, 0.03, 2.0)
    for way, many in (("out", 8), ("in", 10)):
        flows[f"packets_{way}"] = np.where(udp, 1, many).astype(np.int64)
        flows[f"bytes_{way}"] = np.where(udp, 48, many * np.where(k == 1, 700, 40)).astype(np.int64)
    flows["outcome"] = np.where(udp, 0, OUTCOMES.index("SF")).astype(np.uint8)
    flows["rtt"][:] = 0.03
    return flows, kind


def saved(flows, folder):
    folder.mkdir(exist_ok=True)
    write_tables({name: flows[name] for name in [*COLUMNS, *(n for n in flows if n not in COLUMNS)]}, folder)
    return (str(folder / "flows.parquet"),)


def some(flows, index):
    return {name: value[index] for name, value in flows.items()}


def test_adding_a_unit_leaves_every_other_row_as_it_was(tmp_path):
    flows, _ = made(40)
    rest = some(flows, flows["client"][:, 15] != 17)
    whole = SESSIONS.read(saved(flows, tmp_path / "whole"), "src", silent).samples
    part = SESSIONS.read(saved(rest, tmp_path / "part"), "src", silent).samples
    assert (len(whole), len(part)) == (40, 39)
    others = np.delete(whole, 16, axis=0)
    assert others.tobytes() == part.tobytes()
    embed = SESSIONS.embedder
    assert torch.equal(embed(torch.from_numpy(others)), embed(torch.from_numpy(part)))
    # The check can fail: a flow more in one of the others.
    one_more = {name: np.append(value, value[:1], axis=0) for name, value in rest.items()}
    assert SESSIONS.read(saved(one_more, tmp_path / "more"), "src", silent).samples.tobytes() != part.tobytes()


def test_flows_that_cannot_be_used_are_left_out_one_by_one(tmp_path):
    flows, _ = made(20)
    flows["duration"][np.flatnonzero(flows["client"][:, 15] == 3)[:2]] = np.nan
    flows["user"] = np.where(flows["client"][:, 15] == 7, "", "u" + flows["client"][:, 15].astype("U3"))
    flows["start"][np.flatnonzero(flows["client"][:, 15] == 4)[:2]] = np.inf, 1e308
    read = SESSIONS.read(saved(flows, tmp_path / "t"), "user", silent)
    assert len(read.samples) == 19
    assert read.units is None
    assert np.isfinite(read.samples).all()
    assert len(SESSIONS.read(saved(flows, tmp_path / "t"), "window:600", silent).samples) > 20
    for unit in (None, "flow", "pair"):
        with pytest.raises(InputError, match="--unit"):
            SESSIONS.read(saved(flows, tmp_path / "t"), unit, silent)


def test_a_declared_window_cuts_sessions_and_without_one_starts_are_not_seen(tmp_path):
    flows, _ = made(30)
    source = saved(flows, tmp_path / "t")
    assert not column(SESSIONS.read(source, "src", silent).samples, "start").any()
    timed = Sessions(start=1.6e9, length=600.0, timed=True)
    rows = timed.read(source, "src", silent).samples
    assert column(rows, "span").max() < 600
    later = some(flows, flows["start"] < 1.6e9 + 600)
    assert timed.read(saved(later, tmp_path / "u"), "src", silent).samples.tobytes() == rows.tobytes()


def test_a_session_has_the_label_of_most_of_its_flows(tmp_path):
    flows, kind = made(12)
    flows["label"] = np.array(["tv", "bulb", "phone"])[kind[flows["client"][:, 15].astype(int) - 1]]
    flows["label"][np.flatnonzero(flows["client"][:, 15] == 4)[0]] = "odd"
    read = Sessions(labels="label").read(saved(flows, tmp_path / "t"), "src", silent)
    assert read.labels.tolist() == np.array(["tv", "bulb", "phone"])[kind].tolist()


# --- the embedding


def test_keeps_the_contract_of_an_embedder():
    rows = SESSIONS.render(SESSIONS.random(64, generator()))
    bad = [str(finding) for finding in simpe.check_embedder(SESSIONS.embedder, rows) if not finding.ok]
    assert bad == []


def test_embedding_tells_beacons_from_bursts_and_many_servers_from_one(tmp_path):
    flows, kind = made(9)
    beacon = some(flows, flows["client"][:, 15] == 1 + np.argmax(kind == 0))
    n = len(beacon["start"])

    def embedded(name, **changed):
        rows = SESSIONS.read(saved(beacon | changed, tmp_path / name), "src", silent).samples
        return SESSIONS.embedder(torch.from_numpy(rows))[0]

    plain = embedded("plain")
    assert torch.equal(embedded("later", start=beacon["start"] + 5000), plain)
    servers = beacon["server"].copy()
    servers[:, 15] = np.arange(n)
    bursts = beacon["start"][0] + 60.0 * (np.arange(n) // 8 * 8) + 0.1 * (np.arange(n) % 8)
    other = beacon["server"].copy()
    other[:, 13] += 1
    assert torch.equal(embedded("elsewhere", server=other), plain)  # never an address
    for changed in ({"server": servers}, {"start": bursts}):
        assert float((embedded(next(iter(changed)), **changed) - plain).norm()) > 0.4


@pytest.mark.parametrize(("shape", "dtype", "error"), [((4, 3, 3), torch.float64, ValueError), ((4, len(SESSION)),
                         torch.float64, ValueError), ((4, 3, len(SESSION)), torch.int64, TypeError)])  # fmt: skip
def test_what_are_no_sessions_is_refused(shape, dtype, error):
    with pytest.raises(error):
        SessionEmbedding()(torch.zeros(shape, dtype=dtype))


# --- runs


def test_what_holds_of_hosts_survives(tmp_path):
    flows, _ = made(500)
    rows = SESSIONS.read(saved(flows, tmp_path / "t"), "src", silent)
    ours = torch.from_numpy(rows.samples)
    random = SESSIONS.render(SESSIONS.random(len(ours), public_generator(0, "compare")))

    def off(sessions, name):
        values = (torch.log1p(column(x, name)[:, 0]).numpy() for x in (ours, sessions))
        return wasserstein_distance(*values)

    def evolved(seed):
        private = simpe.PrivateData(rows.samples, budget=simpe.Budget(8, 1e-5), noise=addressed_noise)
        return simpe.evolve(Sessions(), None, private, seed=seed).samples

    found = [evolved(seed) for seed in range(3)]  # few places, so one seed may miss
    for name in ("flows", "servers"):
        assert np.median([off(sessions, name) for sessions in found]) < 0.4 * off(random, name), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over the marked capture of the command's tests: its folder and what it said."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.pcap").write_bytes(pcap(queries()))
    options = ("--unit", "src", "--k", 8, "--epsilon", 30, "--delta", 1e-5, "--sessions", 12, "--steps", 2)
    done = command("network", "a.pcap", *options, "--out", "run", "--compare", cwd=folder)
    return folder / "run", done.stdout + done.stderr


def test_the_command_releases_hosts(finished):
    flows = tables.read(finished[0] / "release" / "flows.csv", "simpe")
    assert len(np.unique(flows["client"], axis=0)) == 12
    assert (finished[0] / "private" / "comparison.png").is_file()
    found = certificate(finished[0])
    assert (found["unit"], found["k"], found["accounting"]) == ("src", 1, "privacy loss distribution")
    assert found["statement"].endswith("adding or removing one src")
    assert any("the servers that it talks to" in caveat for caveat in found["caveats"])
    assert any("8 of its flows" in caveat for caveat in found["caveats"])
    assert any("gaps in it are its own" in caveat for caveat in found["caveats"])
    assert found["public_inputs"]["simulator"]["settings"]["flows_of_a_session_looked_at"] == 8


def test_nothing_marked_in_the_input_comes_out(finished):
    planted = (finished[0].parent / "a.pcap").read_bytes()
    assert all(mark in planted for mark in MARKS)
    for content in [finished[1].encode(), *(path.read_bytes() for path in (finished[0] / "release").iterdir())]:
        assert not any(mark in content for mark in (*MARKS, *TEXTS))
    with np.load(finished[0] / "release" / "samples.npz") as arrays:
        assert not any(mark in arrays[name].tobytes() for name in arrays for mark in MARKS)


def test_sessions_default_to_the_noisy_count_and_windows_to_their_own_length(tmp_path):
    (tmp_path / "a.pcap").write_bytes(pcap(queries()))
    config = make_config(
        simulator="network-sessions", private=(str(tmp_path / "a.pcap"),), out=tmp_path / "out", epsilon=8.0,
        unit="window:50", steps=2, options={"length": 50.0, "k": 4},
    )  # fmt: skip
    release = runs.start(config, noise=lambda sigma, n, address: np.zeros(n, dtype=np.int64))
    assert len(release.samples) == 30
    flows = tables.read(tmp_path / "out" / "release" / "flows.csv", "simpe")
    assert np.ptp(flows["start"]) < 50


# --- in other people's tools


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    flows = SESSIONS.table(small(150, seed=8, packets=15, flows=25))
    path = tmp_path_factory.mktemp("sessions") / "a.pcap"
    writer.write(path, flows)
    return path, flows


def test_tshark_finds_nothing_wrong(written):
    path, flows = written
    assert dissected(path) == {"packets": int((flows["packets_out"] + flows["packets_in"]).sum())}


def test_other_tools_count_the_same(written, tmp_path):
    path, flows = written
    told = subprocess.run(
        [tool("tcptrace", "tcptrace"), "-n", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert told.count("(complete)") == int((flows["outcome"] == OUTCOMES.index("SF")).sum())
    pytest.importorskip("nfstream", reason="nfstream is missing: pip install nfstream")
    script = tmp_path / "stream.py"
    script.write_text(STREAM)
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=True)
    streamed = json.loads(done.stdout.splitlines()[-1])
    assert len(streamed) == len(flows["start"])
    assert len({flow[0] for flow in streamed}) == 150
