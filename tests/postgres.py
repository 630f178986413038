"""A PostgreSQL server of the tests' own, from Debian's package, reached by a socket in its folder alone."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, text

from caesura.store import open_store

ABSENT = "PostgreSQL's server is not installed: its initdb is neither in PATH nor where Debian puts it"
_TEMPLATE = "migrated"


class PostgresServer:
    """Running. Each `new_database` is one that nothing has been written into but the tables."""

    def __init__(self, folder: Path, control: list[str | Path], as_user: dict[str, Any]) -> None:
        self._folder = folder
        self._control = control
        self._as_user = as_user
        self.start()
        self._numbers = itertools.count(1)
        self._admin: Engine = create_engine(
            self.url("postgres").replace("postgresql:", "postgresql+psycopg:"),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,  # the server may be another than a moment ago
        )
        self._run(f"CREATE DATABASE {_TEMPLATE}")
        open_store(folder / "unused", self.url(_TEMPLATE)).close()

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """Its URL."""
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self.url(name)

    def start(self) -> None:
        self._do("start")

    def stop(self) -> None:
        """At once, as when its machine fails."""
        self._do("-m", "immediate", "stop")

    def close(self) -> None:
        self._admin.dispose()
        self.stop()

    def _do(self, *command: str) -> None:
        subprocess.run(
            [*self._control, *command], check=True, stdout=subprocess.DEVNULL, cwd=self._folder, **self._as_user
        )

    def _run(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(statement))


def find_binaries() -> Path | None:
    """The folder of PostgreSQL's programs, the newest version's; None where there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


@contextmanager
def running_postgres(binaries: Path) -> Generator[PostgresServer, None, None]:
    folder = Path(tempfile.mkdtemp(prefix="caesura-postgres-"))
    data = folder / "data"
    # It refuses to be root's.
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    folder.chmod(0o755)
    initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **as_user)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=200"
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options]
    server = PostgresServer(folder, control, as_user)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)
