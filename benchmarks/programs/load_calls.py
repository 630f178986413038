"""Sends requests over kept connections, each connection its next one as soon as it is answered, for a while."""

from __future__ import annotations

import itertools
import random
import selectors
import socket
import time
from dataclasses import dataclass, field

from benchmarks.programs import arguments, finish

_BREAK = b"\r\n\r\n"


class Refused(Exception):
    """An answer of another status than 200."""


@dataclass(slots=True)
class Connection:
    socket: socket.socket
    began: float = 0.0
    received: bytes = b""
    #: Bytes of the whole answer, once its head has come.
    length: int | None = None


@dataclass(slots=True)
class Load:
    """`requests` are sent in turn, as the bytes they are."""

    requests: list[bytes]
    latencies_s: list[float] = field(default_factory=list[float])

    def run(self, address: tuple[str, int], num_connections: int, seconds: float, max_requests: int) -> float:
        """Seconds until the last answer."""
        following = itertools.cycle(self.requests)
        began = time.perf_counter()
        num_sent = 0
        with selectors.DefaultSelector() as selector:
            for _ in range(num_connections):
                connection = Connection(socket.create_connection(address))
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                _send(connection, next(following))
                num_sent += 1
            num_open = num_connections
            while num_open:
                for key, _ in selector.select():
                    connection: Connection = key.data
                    if not self._receive(connection):
                        continue
                    if time.perf_counter() - began < seconds and num_sent < max_requests:
                        _send(connection, next(following))
                        num_sent += 1
                    else:
                        selector.unregister(connection.socket)
                        connection.socket.close()
                        num_open -= 1
        return time.perf_counter() - began

    def _receive(self, connection: Connection) -> bool:
        """Take what has come; whether the answer is whole."""
        data = connection.socket.recv(1 << 18)
        if not data:
            raise Refused("the server closed the connection")
        connection.received += data
        if connection.length is None and _BREAK in connection.received:
            connection.length = _length(connection.received)
        if connection.length is None or len(connection.received) < connection.length:
            return False
        self.latencies_s.append(time.perf_counter() - connection.began)
        if not connection.received.startswith(b"HTTP/1.1 200"):
            raise Refused(connection.received[:500].decode(errors="replace"))
        return True


def _send(connection: Connection, request: bytes) -> None:
    connection.received, connection.length = b"", None
    connection.began = time.perf_counter()
    connection.socket.sendall(request)


def _length(received: bytes) -> int:
    head, _, _ = received.partition(_BREAK)
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(head) + len(_BREAK) + int(value)
    raise Refused("an answer without a length")


def _request(method: str, path: str, api_key: str, body: str) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {api_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


def main() -> None:
    asked = arguments()
    requests = [_request(asked["method"], path, asked["api_key"], asked["body"]) for path in asked["paths"]]
    random.Random(1).shuffle(requests)
    load = Load(requests)
    address = asked["host"], asked["port"]
    wall_s = load.run(address, asked["num_connections"], asked["seconds"], asked["max_requests"])
    ordered = sorted(load.latencies_s)
    finish(
        {
            "num": len(ordered),
            "per_s": len(ordered) / wall_s,
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e3,
        }
    )


if __name__ == "__main__":
    main()
