"""Flower carries the messages: its processes stand between server and clients, and see neither rows nor secrets.

Flower's client app is run afresh for every message, from a file that the server hands out. So neither app does anything
but pass bytes on (see ``app/relay.py``): simpe's own process, which holds the rows and the ledger, listens on a Unix
socket. Flower may thus live in an environment of its own, with its own versions of everything, and be run by a user who
cannot read the rows.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from simpe.errors import InputError

APP = Path(__file__).parent / "app"
PATIENCE = 120.0  # seconds for Flower to start
LONGEST = 2**32  # bytes of a message
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def programs(folder: Path | None) -> Path:
    """The folder of Flower's programs: the one given, or where this Python's are, or on the PATH.

    Raises InputError where Flower is not installed.
    """
    beside = shutil.which("flower-supernode", path=str(Path(sys.executable).parent)) or shutil.which("flower-supernode")
    found = folder or (Path(beside).parent if beside else None)
    if found is None or not (found / "flower-supernode").is_file():
        where = f"--flower {folder}: has no flower-supernode" if folder else "Flower is not installed"
        raise InputError(f"{where}; in an environment of its own: pip install 'flwr>=1.41', then --flower ENV/bin")
    return found.absolute()


def send(connection: socket.socket, data: bytes) -> None:
    """One frame: eight bytes of length, big-endian, and the bytes."""
    connection.sendall(len(data).to_bytes(8, "big") + data)


def receive(connection: socket.socket) -> bytes:
    """One frame. Raises ConnectionError where the other end is gone, or says more than LONGEST bytes."""
    size = int.from_bytes(_exactly(connection, 8), "big")
    if size > LONGEST:
        raise ConnectionError("a message is too long")
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 2**20))
        if not part:
            raise ConnectionError("the other end is gone")
        data += part
    return bytes(data)


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise InputError(f"{path}: no socket can be made there ({error.strerror or error}); choose another") from None
    path.chmod(0o660)
    listener.listen()
    return listener


@contextlib.contextmanager
def served(answer: Callable[[bytes], bytes], path: Path) -> Iterator[None]:
    """A client's answers, given at a Unix socket as long as this lasts: one question a connection."""
    listener = _listening(path)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE)
                send(connection, answer(receive(connection)))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        path.unlink(missing_ok=True)


class Relay:
    """An exchange (see :mod:`simpe.federated.door`) over the connection that Flower's server app makes."""

    def __init__(self, connection: socket.socket):
        self._connection = connection

    def members(self, least: int) -> Sequence[str]:
        """See Exchange."""
        found: list[str] = json.loads(self._said({"ask": "members", "least": least}))
        return found

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """See Exchange."""
        names = json.loads(self._said({"ask": "answers", "names": list(messages)}, *messages.values()))
        return {name: self._received() for name in names}

    def _said(self, what: Mapping[str, object], *more: bytes) -> bytes:
        try:
            for data in (json.dumps(what).encode(), *more):
                send(self._connection, data)
        except OSError:
            raise _gone() from None
        return self._received()

    def _received(self) -> bytes:
        try:
            return receive(self._connection)
        except OSError:
            raise _gone() from None


def _gone() -> InputError:
    return InputError("Flower's server app is gone; see its log, start Flower again, then continue the run")


def _started(name: str, command: Sequence[str | Path], folder: Path) -> subprocess.Popen[bytes]:
    """A program of Flower's, in a process group of its own, with its files and its log in the folder."""
    home = folder / name
    home.mkdir()
    environment = {**os.environ, **_QUIET, "FLWR_HOME": str(home)}
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment.get('PATH', '')}"
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def _running(name: str, command: Sequence[str | Path], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = _started(name, command, folder)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"{option} {text}: write HOST:PORT")
    return host.strip("[]"), int(port)


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def supernode(bin_: Path, superlink: str, socket_: Path, authority: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """Flower's client process, which connects to the server and passes messages to the socket and back."""
    host, _ = _address(superlink, "--superlink")
    trust: list[str | Path] = []
    if authority is not None:
        trust = ["--root-certificates", authority.absolute()]
    elif _loopback(host):
        trust = ["--insecure"]
    with tempfile.TemporaryDirectory(prefix="simpe-") as folder:
        command = [
            bin_ / "flower-supernode", *trust, "--superlink", superlink, "--port", str(free_port()),
            "--node-config", f'socket="{socket_.absolute()}"',
        ]  # fmt: skip
        with _running("supernode", command, Path(folder)) as process:
            yield process


@contextlib.contextmanager
def superlink(bin_: Path, listen: str, tls: tuple[Path, Path, Path] | None, wait: float) -> Iterator[Relay]:
    """Flower's server process on this machine, with the server app running in it.

    ``tls``: certificate, key and authority, PEM; without it, only this machine can reach the server. ``wait``: seconds
    for clients to come, and to answer.

    Raises InputError where it cannot be started.
    """
    host, port = _address(listen, "--listen")
    if tls is None and not _loopback(host):
        raise InputError(f"--listen {listen}: give --certificate, --key and --authority where others can reach it")
    with tempfile.TemporaryDirectory(prefix="simpe-") as name:
        folder = Path(name)
        app = folder / "app"
        shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / "socket"
        names = ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile")
        trust = ["--insecure"] if tls is None else [str(x) for pair in zip(names, tls, strict=True) for x in pair]
        command: list[str | Path] = [
            bin_ / "flower-superlink", *trust, "--host", host, "--port", str(port),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        with contextlib.closing(_listening(path)) as listener, _running("superlink", command, folder) as process:
            _reachable(host, port, process, folder)
            _submit(bin_, app, listen, tls, path, wait, folder)
            listener.settimeout(PATIENCE)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise InputError(f"Flower's server app does not start{_last(folder / 'superlink.log')}") from None
            with connection:
                connection.settimeout(wait + PATIENCE)
                yield Relay(connection)


def _reachable(host: str, port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        if process.poll() is not None or time.monotonic() > until:
            raise InputError(f"--listen {host}:{port}: Flower cannot be started{_last(folder / 'superlink.log')}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.1)


def _submit(
    bin_: Path, app: Path, listen: str, tls: tuple[Path, Path, Path] | None, path: Path, wait: float, folder: Path
) -> None:
    """Hand the app to the server: from here on Flower gives it to every client."""
    home = folder / "flwr"
    home.mkdir()
    how = "insecure = true" if tls is None else f"root-certificates = {json.dumps(str(tls[2].absolute()))}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "simpe"\n\n[superlink.simpe]\naddress = {json.dumps(listen)}\n{how}\n'
    )
    settings = f"socket={json.dumps(str(path))} wait={float(wait)}"
    done = subprocess.run(
        [str(bin_ / "flwr"), "run", str(app), "simpe", "--run-config", settings],
        env={**os.environ, **_QUIET, "FLWR_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        (folder / "flwr.log").write_bytes(done.stdout + done.stderr)
        raise InputError(f"Flower does not take the app{_last(folder / 'flwr.log')}")


def _last(log: Path) -> str:
    """The last words of a log, for a message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip(" \t│╭╮╰╯─")]
    return f" ({lines[-1][:200]})" if lines else ""
