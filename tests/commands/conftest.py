"""Commands in this process, which ask a server in another thread."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from caesura.commands.main import main
from tests.api.conftest import client, http, http_server, service, settings
from tests.api.service import KEY, Service, rows

__all__ = ["client", "http", "http_server", "service", "settings"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document that it printed."""
        (document,) = self.lines
        return document

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        """The one line that it told in the place of a result."""
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.startswith("error: ")
        return self.err.removeprefix("error: ").rstrip("\n")


Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server of whoever runs the tests, and a folder to work in."""
    for name in list(os.environ):
        if name.startswith(("CAESURA_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def elsewhere(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that is told of no server."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def caesura(elsewhere: Command, service: Service, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command that finds the service in its environment."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{service.http_server.origin}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return elsewhere


@pytest.fixture
def data(tmp_path: Path) -> str:
    """The name of a good training file, in the folder where commands run."""
    (tmp_path / "train.jsonl").write_bytes(rows())
    return "train.jsonl"
