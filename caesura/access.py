"""How the workers of a server reach it: its address, and a key of their own, in a file that only its owner may read.

Workers outlive their server, so they read it anew for every call: the next server has another key, and maybe another
port.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from caesura.ids import new_token

#: The first key of the server, in the data folder; only its owner may read it.
API_KEY_FILE = "api_key"
#: In the data folder, which servers on several machines may share: their own is the one that workers reach.
ACCESS_FILE = f"worker_access.{socket.gethostname()}.json"
#: What a server listens on that listens everywhere, and where it is then reached from its own machine.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Access:
    #: The API's base, such as http://127.0.0.1:8000/v1.
    url: str
    key: str


def grant_access(data_dir: Path, host: str, port: int, key: str) -> None:
    """Write the file, whole or not at all, in the place of one that is there."""
    host = _LOOPBACK.get(host, host)
    access = Access(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1", key)
    temporary = data_dir / f".{ACCESS_FILE}.{new_token()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(access), file)
        temporary.replace(data_dir / ACCESS_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def find_access(data_dir: Path) -> Access | None:
    """None while no server has granted any."""
    try:
        return Access(**json.loads((data_dir / ACCESS_FILE).read_text()))
    except FileNotFoundError:
        return None


def withdraw_access(data_dir: Path, key: str) -> None:
    """Remove the file of the server with this key; that of another stays."""
    access = find_access(data_dir)
    if access is not None and access.key == key:
        with suppress(FileNotFoundError):
            (data_dir / ACCESS_FILE).unlink()
