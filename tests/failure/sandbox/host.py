"""What lies around a sandbox and must come to no harm: sockets that listen, files, a process, a secret."""

from __future__ import annotations

import os
import secrets
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

#: In the environment of whoever runs the attacks, and so of the victim.
SECRET_NAME = "SECRET_OF_THE_HOST"
CHECKOUT = Path(__file__).parents[3]
_CONTENT = "left alone"
#: Attacks that write wherever they can call their file so.
_ATTACK_NAME = "caesura-attack"
_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev", "/", "/etc", "/usr/lib", "/home", "/root", "/dev/mqueue")


class Host:
    """Owned by the user of this process, and open to all by its modes: only a sandbox keeps anyone out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "host"
        self.file = self.folder / "canary"
        self.unix = folder / "listening"
        self.unix_datagram = folder / "receiving"
        self.abstract = f"caesura-{secrets.token_hex(8)}"
        self._sockets: dict[str, socket.socket] = {}
        self._victim: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        self.folder.parent.mkdir(exist_ok=True)
        self.folder.parent.chmod(0o755)
        self._listen()
        self._victim = subprocess.Popen(["sleep", "600"])
        self._write_files()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._sockets.values():
            listener.close()
        self.kill_victim()

    def kill_victim(self) -> None:
        assert self._victim is not None
        self._victim.kill()
        self._victim.wait()

    @property
    def victim_pid(self) -> int:
        assert self._victim is not None
        return self._victim.pid

    def addresses(self) -> Mapping[str, Any]:
        """Where everything is: a sandbox does not hold because nobody knows where to go."""
        return {
            "tcp": self._sockets["TCP"].getsockname()[1],
            "tcp6": self._sockets["TCP over IPv6"].getsockname()[1] if "TCP over IPv6" in self._sockets else 9,
            "udp": self._sockets["UDP"].getsockname()[1],
            "unix": str(self.unix),
            "unix_datagram": str(self.unix_datagram),
            "abstract": self.abstract,
            "name": os.uname().nodename,
            "victim": self.victim_pid,
            "server": os.getpid(),
            "folder": str(self.folder),
            "file": str(self.file),
            "checkout": str(CHECKOUT),
        }

    def damage(self) -> list[str]:
        """What has been done to it, a sentence each. It is whole again afterwards."""
        found = [*self._reached(), *self._changed(), *_left_elsewhere()]
        assert self._victim is not None
        if self._victim.poll() is not None:
            found.append(f"the victim ended with status {self._victim.returncode}")
            self._victim = subprocess.Popen(["sleep", "600"])
        if found:
            self._write_files()
        return found

    def _listen(self) -> None:
        self._add("TCP", socket.socket(), ("127.0.0.1", 0))
        if socket.has_ipv6:
            with suppress(OSError):
                self._add("TCP over IPv6", socket.socket(socket.AF_INET6), ("::1", 0))
        self._add("UDP", socket.socket(type=socket.SOCK_DGRAM), ("127.0.0.1", 0))
        self._add("the Unix socket", socket.socket(socket.AF_UNIX), str(self.unix))
        datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._add("the Unix datagram socket", datagram, str(self.unix_datagram))
        self._add("the abstract Unix socket", socket.socket(socket.AF_UNIX), "\0" + self.abstract)
        for path in (self.unix, self.unix_datagram):
            path.chmod(0o777)

    def _add(self, name: str, listener: socket.socket, address: object) -> None:
        listener.bind(address)  # type: ignore[arg-type]
        if listener.type == socket.SOCK_STREAM:
            listener.listen()
        self._sockets[name] = listener

    def _write_files(self) -> None:
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)
        self.folder.mkdir()
        (self.folder / "empty").mkdir()
        self.file.write_text(_CONTENT)
        for path, mode in ((self.folder, 0o777), (self.folder / "empty", 0o777), (self.file, 0o666)):
            path.chmod(mode)
        self._seen = _look(self.folder)

    def _reached(self) -> Iterator[str]:
        for listener in select.select(list(self._sockets.values()), [], [], 0)[0]:
            yield f"{next(name for name, known in self._sockets.items() if known is listener)} was reached"
            if listener.type == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.recv(1)

    def _changed(self) -> Iterator[str]:
        seen = _look(self.folder)
        for name in sorted(self._seen.keys() | seen.keys()):
            if self._seen.get(name) != seen.get(name):
                yield f"'{name}' was {self._seen.get(name)} and is {seen.get(name)}"


def _look(folder: Path) -> dict[str, tuple[object, ...]]:
    """Each name in `folder`, with all about it that an attack could change."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        stat = path.lstat()
        text = path.read_text() if path.is_file() and os.access(path, os.R_OK) else None
        attributes = os.listxattr(path, follow_symlinks=False)
        about = (
            stat.st_ino,
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_nlink,
            stat.st_mtime_ns,
            text,
            *attributes,
        )
        seen[str(path.relative_to(folder))] = about
    return seen


def _left_elsewhere() -> Iterator[str]:
    """Files that an attack has left outside; they are removed."""
    for folder in dict.fromkeys((*_PLACES, sys.prefix, os.path.dirname(os.__file__), *filter(None, sys.path))):
        for name in (_ATTACK_NAME, f"{_ATTACK_NAME}.py", "left"):
            path = Path(folder, name)
            with suppress(OSError):
                path.unlink()
                yield f"{path} was created"
