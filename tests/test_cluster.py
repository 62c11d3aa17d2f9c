"""A Dask cluster gives the bits of a run in one process, whatever dies in between, and never a row."""

import pickle
import socket
import ssl
import struct
import sys

import numpy as np
import pytest
import torch
from deadly import Deadly, DeadlyOscillator, by_sign, held, kill
from support import Oscillator, addressed_noise, no_noise
from test_network_command import pcap, udp

import simpe
from simpe import Budget, Cluster, Here, InputError, PrivateData, Strategy, cluster, runs, sources
from simpe.cli import main
from simpe.config import make_config
from simpe.privacy.ledger import Ledger
from simpe.simulators.network.sessions import Sessions
from simpe.simulators.network.traces import Traces
from simpe.stages import Stage, flatten

pytest.importorskip("distributed")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two():
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), Cluster("local:2") as workers:
        yield workers


@pytest.fixture
def folder(tmp_path):
    """Three shards of oscillations in two classes, each unit in one of them."""
    generator = torch.Generator().manual_seed(5)
    rows = Oscillator().render(Oscillator.space.sample(90, generator)).numpy()
    (tmp_path / "rows").mkdir()
    for number, part in enumerate(np.split(np.arange(90), [20, 61])):
        arrays = {"samples": rows[part], "labels": part % 2, "who": 100 * number + part % 7}
        np.savez(tmp_path / "rows" / f"{number}.npz", **arrays)
    return tmp_path / "rows"


def config(folder, out, **more):
    values = {"simulator": "support:Oscillator", "epsilon": 4.0, "samples": 30, "steps": 2, "classes": "0,1"} | more
    return make_config(private=str(folder), out=out, **values)


def asked(i, later=0.0):
    """The packet of flow number i, from client i % 10: a time and a frame."""
    return i + later, udp(bytes([10, 0, 0, i % 10]), bytes([9, 9, 9, 9]), (30_000 + i, 53), bytes(20 << i % 6))


@pytest.fixture
def captures(tmp_path):
    """Three captures, each of some clients of one network, and none of the others'."""
    pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install pyarrow")
    (tmp_path / "captures").mkdir()
    for number in range(3):
        mine = [asked(i) for i in range(60) if i % 10 % 3 == number]
        (tmp_path / "captures" / f"{number}.pcap").write_bytes(pcap(mine))
    return tmp_path / "captures"


def traffic(folder, by_file=True, simulator="network", unit="flow", **more):
    values = {"epsilon": 8.0, "samples": 20, "steps": 1, "out": folder.parent / "run"} | more
    values = {"private": str(folder), "options": {"by_file": by_file}} | values
    return make_config(simulator=simulator, unit=unit, **values)


def same(one, two):
    return torch.equal(one.samples, two.samples) and one.certificate == two.certificate


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"unit": "who", "k": 3, "strategy": Strategy(neighbours=2)},
        {"unit": "who", "strategy": Strategy(marginals=0.5, lookahead=2)},
    ],
    ids=["rows", "units", "marginals"],
)
def test_a_cluster_gives_the_bits_of_one_process(two, folder, tmp_path, monkeypatch, more):
    monkeypatch.setattr(Ledger, "key", lambda self: b"k" * 32)  # which rows the cap keeps is the key's secret
    here = runs.start(config(folder, tmp_path / "here", **more), noise=addressed_noise)
    there = runs.start(config(folder, tmp_path / "there", **more), noise=addressed_noise, cluster=two)
    assert same(here, there)
    memory = runs.start(config(folder, tmp_path / "low", **more), noise=addressed_noise, memory=2**33)
    assert same(here, memory)


def test_one_file_is_divided_and_a_run_may_move_to_a_cluster_and_back(two, folder, tmp_path):
    one = folder / "1.npz"
    whole = runs.start(config(one, tmp_path / "whole"), noise=addressed_noise)

    class Stop(Exception):
        pass

    def stop(sigma, n, address):
        if address == "0/1/votes":
            raise Stop
        return addressed_noise(sigma, n, address)

    for name, first, second in (("to", None, two), ("back", two, None)):
        with pytest.raises(Stop):
            runs.start(config(one, tmp_path / name), noise=stop, cluster=first)
        assert same(whole, runs.resume(tmp_path / name, noise=addressed_noise, cluster=second))


@pytest.mark.parametrize(
    "more",
    [{}, {"unit": "pair", "k": 3}, {"simulator": "network-sessions", "unit": "src"}],
    ids=["flows", "pairs", "sessions"],
)
def test_captures_by_file_are_shards_and_vote_as_in_one_reading(two, captures, monkeypatch, more):
    """No conversation goes on in another file here, so reading all as one gives the same rows."""
    monkeypatch.setattr(Ledger, "key", lambda self: b"k" * 32)
    make = Traces if "simulator" not in more else Sessions

    def votes(shards, k=1):
        private = PrivateData(shards, budget=Budget(50.0), classes=[""], k=k, noise=no_noise)
        none = torch.zeros(len(embedded), dtype=torch.int64)
        return private.votes(make().embedder, lambda: embedded, none, 4.0, address="v").tolist()

    def inputs_of(folder, by_file):
        return runs.inputs_of(traffic(captures, **{**more, "private": str(folder)}, by_file=by_file), None)

    k = more.get("k", 1)
    (one,) = inputs_of(captures, False)
    embedded = make().embedder(torch.from_numpy(one.read().samples[:8]))
    whole = votes(Here(inputs_of(captures, False)), k)
    files = inputs_of(captures, True)
    assert len(files) == 3
    assert sum(count > 0 for count in whole) > 1
    assert votes(Here(files, memory=2**33), k) == votes(two.shards(files), k) == whole
    assert votes(two.shards(inputs_of(f"file://{captures}", True)), k) == whole


def test_a_run_on_captures_by_file_says_how_they_were_read(two, captures):
    few = {"strategy": Strategy(start=3, places=8), "samples": 20}
    release = runs.start(traffic(captures, **few), noise=addressed_noise, cluster=two)
    assert any("read by itself" in said for said in release.certificate["caveats"])


@pytest.mark.parametrize("more", [{}, {"unit": "pair"}, {"simulator": "network-sessions", "unit": "src"}])
def test_a_capture_in_which_nobody_speaks_has_no_rows(captures, more):
    """Else one unit's packets would decide whether there is a run."""
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    record = struct.pack("<IIII", 1, 0, len(arp), len(arp)) + arp
    (captures / "quiet.pcap").write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + record)
    rows = [len(source.read().samples) for source in runs.inputs_of(traffic(captures, **more), None)]
    assert rows.count(0) == 1
    assert len(rows) == 4
    (captures / "notes.txt").write_text("no capture")
    with pytest.raises(InputError, match="notes"):
        [source.read() for source in runs.inputs_of(traffic(captures, **more), None)]


def test_what_goes_on_in_the_next_file_is_another_flow_there_and_no_unit_may(two, captures, tmp_path):
    (captures / "3.pcap").write_bytes(pcap([asked(1, later=0.5)]))

    def rows(by_file, **more):
        return [source.read() for source in runs.inputs_of(traffic(captures, by_file, **more), None)]

    assert [sum(len(one.samples) for one in rows(by_file)) for by_file in (False, True)] == [60, 61]
    sessions = {"simulator": "network-sessions", "unit": "src"}
    assert [sum(len(one.samples) for one in rows(by_file, **sessions)) for by_file in (False, True)] == [10, 11]
    for more in ({"unit": "pair"}, sessions):
        for place in ({}, {"cluster": two}):
            with pytest.raises(InputError, match="a unit has rows in two shards"):
                runs.start(traffic(captures, **more), **place)
        assert not (tmp_path / "run").exists()


def test_a_worker_killed_while_it_votes_costs_a_retry_and_no_vote_is_counted_twice(two, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "FAN", 2)  # sums of sums too

    def counted(shards, work):
        private = PrivateData(shards, budget=Budget(50.0), classes="01", noise=no_noise)
        found = private.noisy_sum(work, 2, 4.0, address="x", embedder=flatten)
        assert len(private.ledger.releases()) == 1
        return found.tolist()

    expected = counted(Here(sources(folder)), by_sign)
    shards = two.shards(sources(folder))
    assert counted(shards, Deadly(tmp_path / "died", by_sign)) == expected
    assert (tmp_path / "died").exists()
    assert sum(expected) == 90


def test_a_worker_killed_while_it_renders_or_embeds_costs_a_retry(two, folder, tmp_path):
    def evolved(shards, simulator, embedder=flatten):
        private = PrivateData(shards, budget=Budget(4.0), classes="01", noise=addressed_noise)
        return simpe.evolve(simulator, embedder, private, samples=30, steps=1, run_id="x")

    expected = evolved(Here(sources(folder)), Oscillator())
    simulator = two.simulator(DeadlyOscillator(tmp_path / "rendering"))
    found = evolved(two.shards(sources(folder)), simulator)
    assert (tmp_path / "rendering").exists()
    assert torch.equal(found.samples, expected.samples)


def test_a_task_that_kills_every_worker_is_an_input_error_and_nothing_is_on_the_ledger(two, folder, tmp_path):
    # One shard: of several tasks, some would still be killing workers when the next release begins.
    private = PrivateData(two.shards(sources(folder)[:1]), budget=Budget(50.0), classes="01")

    with pytest.raises(InputError, match="lost every worker"):
        private.noisy_sum(kill, 2, 4.0, address="x")
    assert private.ledger.releases() == []
    assert private.class_counts(4.0, address="c").shape == (2,)


def test_no_row_comes_out_of_a_worker(two, folder):
    shards = two.shards(sources(folder))
    private = PrivateData(shards, budget=Budget(50.0), classes="01")
    private.class_counts(4.0, address="c")
    with np.load(folder / "1.npz") as arrays:
        row = arrays["samples"][5].tobytes()
    for task in shards._shards:
        gathered = task.result()  # what anybody gets who asks Dask for it
        assert gathered._held is gathered._data is None
        assert row not in pickle.dumps(gathered)
    rows = sum(sum(found) for found in two._client.run(held).values())
    assert rows >= 90  # so the check can fail: they are there, on the workers


def test_rows_are_dropped_when_the_cluster_is_left(folder):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, processes=False, protocol="tcp", memory_limit=0, dashboard_address=":0") as started:
        with Cluster(started.scheduler_address) as left:
            PrivateData(left.shards(sources(folder)), budget=Budget(50.0), classes="01").class_counts(4.0, address="c")
            assert sum(sum(found) for found in left._client.run(held).values()) == 90
        with Cluster(started.scheduler_address) as other:
            assert other.submit(sum, [1, 2]).result() == 3
            assert [found for found in other._client.run(held).values() if found] == []


def test_workers_that_may_spill_votes_to_disk_are_refused_and_schedulers_without_workers_too(folder, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "WAIT", 0.5)
    with LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=":0") as started:
        with pytest.raises(InputError, match="has no workers"):
            Cluster(started.scheduler_address)
        monkeypatch.undo()
        started.scale(1)
        with Cluster(started.scheduler_address) as spilling, pytest.raises(InputError, match="spill to disk"):
            PrivateData(spilling.shards(sources(folder)), budget=Budget(1.0))


# --- TLS


def knock(address):
    """Speak TLS to a scheduler, without a certificate."""
    host, port = address.removeprefix("tls://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        context.wrap_socket(plain) as peer,
    ):
        if peer.recv(1) == b"":  # TLS 1.3 tells the client only when it reads
            raise ConnectionError


def test_peers_without_a_certificate_are_refused_and_those_with_one_are_not(two, tmp_path):
    import dask

    address = two._local.scheduler_address
    assert address.startswith("tls://127.0.0.1:")
    with pytest.raises(InputError, match="needs a certificate"):
        Cluster(address)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        knock(address)
    own = two._local.security
    ours = {}
    texts = {"ca-file": own.tls_ca_file, "client.cert": own.tls_client_cert, "client.key": own.tls_client_key}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        ours[f"distributed.comm.tls.{name}"] = str(tmp_path / name)
    with dask.config.set(ours), Cluster(address) as trusted:
        assert trusted.submit(sum, [1, 2]).result() == 3


# --- bad input


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://127.0.0.1:9", "cannot be reached"),
        ("tcp://", "cannot be reached"),
        ("127.0.0.1:8786", "write tcp://host:port"),
        ("local:0", "write tcp://host:port"),
        ("local:two", "write tcp://host:port"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_2(folder, tmp_path, monkeypatch, capsys, address, said):
    monkeypatch.setattr(cluster, "WAIT", 0.5)
    (tmp_path / "c.toml").write_text(config(folder, tmp_path / "run").to_toml())
    monkeypatch.setattr(sys, "argv", ["simpe", "run", str(tmp_path / "c.toml"), "--cluster", address])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("simpe: error")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "run").exists()


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'simpe\[cluster\]'"):
        Cluster("local:1")


def test_workers_with_other_versions_are_refused():
    with pytest.raises(InputError, match=r"a worker has torch .* and this process 1\.0"):
        cluster._open(b"", {"torch": "1.0"})


def test_what_cannot_travel_is_said_before_anything_is_spent(two, folder, tmp_path):
    class Locked(Oscillator):
        def __init__(self):
            self.file = (tmp_path / "x").open("w")

    stuck = Locked()
    with stuck.file, pytest.raises(InputError, match="Locked cannot be sent to the workers"):
        two.stage(Stage(stuck))


def test_shards_that_differ_or_are_gone_are_refused_by_the_workers_too(two, folder):
    np.savez(folder / "3.npz", samples=np.zeros((3, 5), np.float32), labels=np.zeros(3, int))
    with pytest.raises(InputError, match="shards differ in the shape"):
        PrivateData(two.shards(sources(folder)), budget=Budget(1.0))
    listed = sources(folder)[:3]
    (folder / "2.npz").unlink()
    with pytest.raises(InputError, match=r"2\.npz: no such file"):
        PrivateData(two.shards(listed), budget=Budget(1.0))
