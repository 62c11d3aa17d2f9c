"""The Flower app: a pipe at either end, between Flower and simpe's own process, which listens on a Unix socket.

It needs Flower and the standard library alone. Flower hands this file to every client and runs it there, so it can be
run by a user who cannot read the rows: all that it needs is the socket.
"""

import json
import socket
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()
POLL = 0.3  # seconds


def send(connection: socket.socket, data: bytes) -> None:
    """One frame: eight bytes of length, big-endian, and the bytes."""
    connection.sendall(len(data).to_bytes(8, "big") + data)


def receive(connection: socket.socket) -> bytes:
    """One frame."""
    return _exactly(connection, int.from_bytes(_exactly(connection, 8), "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 2**20))
        if not part:
            raise ConnectionError("the other end is gone")
        data += part
    return bytes(data)


def _connect(path: object) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _content(data: bytes) -> RecordDict:
    return RecordDict({"message": ConfigRecord({"bytes": data})})


def _bytes(message: Message) -> bytes:
    found = message.content["message"]["bytes"]
    return found if isinstance(found, bytes) else b""


@client.query()
def answer(message: Message, context: Context) -> Message:
    """Carry a question to this client's own process, and its answer back."""
    with _connect(context.node_config["socket"]) as connection:
        send(connection, _bytes(message))
        return Message(_content(receive(connection)), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Do what the server's own process says, until it hangs up."""
    wait = float(str(context.run_config["wait"]))
    with _connect(context.run_config["socket"]) as connection:
        while True:
            try:
                asked = json.loads(receive(connection))
            except ConnectionError:
                return
            until = time.monotonic() + wait
            if asked["ask"] == "members":
                found = list(grid.get_node_ids())
                while len(found) < asked["least"] and time.monotonic() < until:
                    time.sleep(POLL)
                    found = list(grid.get_node_ids())
                send(connection, json.dumps(sorted(map(str, found))).encode())
                continue
            messages = [
                Message(_content(receive(connection)), dst_node_id=int(name), message_type="query")
                for name in asked["names"]
            ]
            waiting = dict(zip(grid.push_messages(messages), asked["names"], strict=True))
            waiting.pop("", None)
            answers = {}
            while waiting and time.monotonic() < until:
                for reply in grid.pull_messages(list(waiting)):
                    name = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if name is not None and not reply.has_error():
                        answers[name] = _bytes(reply)
                if waiting:
                    time.sleep(POLL)
            send(connection, json.dumps(list(answers)).encode())
            for data in answers.values():
                send(connection, data)
