"""A federation over Flower: SuperLink and SuperNodes as processes of their own on this machine.

Flower is looked for in an environment of its own, as it pins versions that the rest of the tests do without:
``SIMPE_FLOWER`` names the folder of its programs, which `make test` sets.
"""

import datetime
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from test_federated import agreement, members, rows

from simpe import InputError
from simpe.federated import flower
from simpe.federated.wire import Message
from simpe.privacy.ledger import Ledger

FLOWER = os.environ.get("SIMPE_FLOWER")
HERE = Path(__file__).parent


def test_a_client_answers_at_its_socket_and_nowhere_once_it_has_left(tmp_path):
    one = members(agreement("x"))[0]
    hello = Message("hello", {"agreement": one.digest}).pack()
    path = tmp_path / "s"
    with flower.served(one.answer, path):
        assert path.stat().st_mode & 0o007 == 0
        for _ in range(2):
            with flower.socket.socket(flower.socket.AF_UNIX) as connection:
                connection.connect(str(path))
                flower.send(connection, hello)
                assert flower.receive(connection) == one.answer(hello)
        with flower.socket.socket(flower.socket.AF_UNIX) as connection:  # one that hangs up half-way harms nobody
            connection.connect(str(path))
            connection.sendall(bytes([0, 0]))
    assert not path.exists()


def test_the_relay_speaks_as_the_app_does(tmp_path):
    """The app's own framing, which Flower's process runs, against ours."""
    ours, theirs = flower.socket.socketpair()
    relay = flower.Relay(ours)

    def app():
        asked = json.loads(flower.receive(theirs))
        data = [flower.receive(theirs) for _ in asked["names"]]
        flower.send(theirs, json.dumps(asked["names"][:1]).encode())
        flower.send(theirs, data[0][::-1])
        theirs.close()

    other = threading.Thread(target=app)
    other.start()
    assert relay.ask({"7": b"abc", "8": b"d"}) == {"7": b"cba"}
    other.join()
    with pytest.raises(InputError, match="server app is gone"):
        relay.members(2)
    ours.close()


def test_where_flower_cannot_be_started_it_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="Flower is not installed"):
        flower.programs(None)
    with pytest.raises(InputError, match="has no flower-supernode"):
        flower.programs(tmp_path)
    with (
        pytest.raises(InputError, match="--certificate, --key and --authority"),
        flower.superlink(tmp_path, "0.0.0.0:9", None, 1.0),
    ):
        pass
    (tmp_path / "flower-superlink").write_text("#!/bin/sh\necho no luck\n")
    (tmp_path / "flower-superlink").chmod(0o755)
    with (
        pytest.raises(InputError, match=r"cannot be started \(no luck\)"),
        flower.superlink(tmp_path, f"127.0.0.1:{flower.free_port()}", None, 1.0),
    ):
        pass


def signed(folder, name, issuer=None):
    """A certificate for 127.0.0.1 and its key, as PEM files; signed by another's (name, key), or an authority's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, with_ = issuer or (own, key)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(by, own, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(with_, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return own, key


@pytest.mark.skipif(FLOWER is None, reason="SIMPE_FLOWER is not set: the folder of Flower's programs")
def test_a_federation_over_flower_releases_and_only_clients_that_trust_its_certificate_take_part(tmp_path):
    config = agreement("run", "distributed", clients=2)
    (tmp_path / "agreement.toml").write_text(config.to_toml().replace("steps = 2", "steps = 1"))
    for number, (start, stop) in enumerate(((0, 45), (45, 90), (0, 45), (45, 90))):
        np.savez(tmp_path / f"{number}.npz", samples=rows()[start:stop], labels=np.arange(start, stop) % 2)
    signed(tmp_path, "server", signed(tmp_path, "authority"))
    signed(tmp_path, "another")
    port = flower.free_port()
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    simpe = [sys.executable, "-m", "simpe", "federated"]
    common = {"cwd": tmp_path, "env": environment, "text": True}
    trusted = [["--authority", "authority.pem"]] * 2 + [["--authority", "another.pem"], []]
    clients = [
        subprocess.Popen(
            [*simpe, "client", "agreement.toml", "--private", f"{n}.npz", "--ledger", f"{n}.jsonl", "--superlink",
             f"127.0.0.1:{port}", "--flower", FLOWER, *trust],
            stderr=subprocess.PIPE, **common,
        )
        for n, trust in enumerate(trusted)
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [*simpe, "server", "agreement.toml", "--listen", f"127.0.0.1:{port}", "--flower", FLOWER,
             "--certificate", "server.pem", "--key", "server.key", "--authority", "authority.pem"],
            capture_output=True, check=False, **common,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        for client in clients:
            client.send_signal(signal.SIGTERM)
        said = [client.communicate(timeout=60)[1] for client in clients]
    assert all("refused" not in text for text in said), said
    certificate = json.loads((tmp_path / "run" / "release" / "certificate.json").read_text())
    assert certificate["private"]
    assert certificate["parties"]["trust"] == "distributed"
    for number in range(4):
        ledger = Ledger(tmp_path / f"{number}.jsonl")
        with ledger.locked():
            assert [r["address"] for r in ledger.releases()] == (["0/counts", "0/0/votes"] if number < 2 else [])
