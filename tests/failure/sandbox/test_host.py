"""The attacks' own instruments: a canary that sees nothing, or a search that finds nothing, proves nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.failure.sandbox.attacks.state import FIND_BY_COLLECTOR, FIND_IN_FILES, FIND_IN_MEMORY, FIND_ON_DESCRIPTORS
from tests.failure.sandbox.host import Host
from tests.failure.sandbox.runner import taken_apart

SECRET = "5d0a1f6be0c14d4f9a53"

#: Answers with what the search in argv[1] says; the request comes over the standard input.
SEARCH = """
import json, sys
names = {}
exec(sys.argv[1], names)
sample = json.loads(sys.stdin.readline())
print(names["grade"](sample, {"tops": ["."]}))
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path / "around") as host:
        yield host


def connect(family: socket.AddressFamily, address: object) -> None:
    with socket.socket(family) as client:
        client.connect(address)  # type: ignore[arg-type]


def send(family: socket.AddressFamily, address: object) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", address)  # type: ignore[arg-type]


#: What is told, and what was done.
DEEDS: list[tuple[str, Callable[[Host], object]]] = [
    ("TCP", lambda host: connect(socket.AF_INET, ("127.0.0.1", host.addresses()["tcp"]))),
    ("UDP", lambda host: send(socket.AF_INET, ("127.0.0.1", host.addresses()["udp"]))),
    ("the Unix socket", lambda host: connect(socket.AF_UNIX, str(host.unix))),
    ("the Unix datagram socket", lambda host: send(socket.AF_UNIX, str(host.unix_datagram))),
    ("the abstract Unix socket", lambda host: connect(socket.AF_UNIX, "\0" + host.abstract)),
    ("victim", lambda host: host.kill_victim()),
    ("'canary' was", lambda host: host.file.write_text("x")),
    ("'new' was", lambda host: (host.folder / "new").touch()),
    ("'empty' was", lambda host: (host.folder / "empty").rmdir()),
    ("'canary' was", lambda host: host.file.chmod(0o600)),
    ("'canary' was", lambda host: os.utime(host.file, (1, 1))),
    ("caesura-attack was created", lambda host: Path("/tmp/caesura-attack").touch()),
]


@pytest.mark.parametrize(("told", "deed"), DEEDS)
def test_the_host_tells_what_was_done_to_it_and_is_whole_again(
    host: Host, told: str, deed: Callable[[Host], object]
) -> None:
    assert host.damage() == []

    deed(host)

    assert told in " ".join(host.damage())
    assert host.damage() == []


def search(source: str, tmp_path: Path, sample: dict[str, object]) -> float:
    child = subprocess.run(
        [sys.executable, "-I", "-c", SEARCH, source],
        input=json.dumps(sample).encode(),
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    return float(child.stdout)


def test_the_searches_find_what_is_there_and_do_not_find_themselves(tmp_path: Path) -> None:
    apart: dict[str, object] = {"earlier": taken_apart(SECRET)}

    for source in (FIND_IN_MEMORY, FIND_BY_COLLECTOR):
        assert search(source, tmp_path, apart) == 0
        assert search(source, tmp_path, {**apart, "whole": [SECRET]}) == 1
    assert search(FIND_IN_FILES, tmp_path, apart) == 0
    (tmp_path / "left").write_text(f"of before: {SECRET}")
    assert search(FIND_IN_FILES, tmp_path, apart) == 1


def test_the_search_on_descriptors_finds_what_waits_in_a_pipe(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(write, "wb") as file:
        file.write(SECRET.encode())
    source = FIND_ON_DESCRIPTORS.replace("range(1024)", f"range({read}, {read} + 1)")
    command = [sys.executable, "-I", "-c", SEARCH, source]
    request = json.dumps({"earlier": taken_apart(SECRET)}).encode() + b"\n"
    child = subprocess.run(command, input=request, capture_output=True, check=True, cwd=tmp_path, pass_fds=[read])
    os.close(read)

    assert float(child.stdout) == 1
