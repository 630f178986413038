"""Uploads one file as a form over a plain socket, from memory that is prepared before the clock runs."""

from __future__ import annotations

import json
import socket
import time

from benchmarks.programs import arguments, finish

_BOUNDARY = "benchmark"
#: What is sent at once.
_PIECE_BYTES = 1 << 20


def main() -> None:
    asked = arguments()
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y" * 50}]})
    line = row.encode() + b"\n"
    piece = memoryview(line * (_PIECE_BYTES // len(line)))
    num_pieces = asked["num_bytes"] // len(piece)
    before = (
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
    ).encode()
    after = f"\r\n--{_BOUNDARY}--\r\n".encode()
    length = len(before) + num_pieces * len(piece) + len(after)
    head = (
        f"POST {asked['path']} HTTP/1.1\r\nhost: {asked['host']}\r\nauthorization: Bearer {asked['api_key']}\r\n"
        f"content-type: multipart/form-data; boundary={_BOUNDARY}\r\ncontent-length: {length}\r\n\r\n"
    ).encode()
    connection = socket.create_connection((asked["host"], asked["port"]))
    began = time.perf_counter()
    connection.sendall(head + before)
    for _ in range(num_pieces):
        connection.sendall(piece)
    connection.sendall(after)
    answer = connection.recv(1 << 16)
    seconds = time.perf_counter() - began
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer[:500].decode(errors="replace"))
    finish({"seconds": seconds, "num_bytes": num_pieces * len(piece)})


if __name__ == "__main__":
    main()
