"""Some of these start the real server, which takes a second."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import typer
from openai import OpenAI
from typer.testing import CliRunner

from caesura import __version__, cli
from caesura.graders.sandbox import find_level
from caesura.settings import Settings
from tests.api.service import wait_until
from tests.serving import Starter
from tests.test_settings import NEEDED, VALUES, plain, write_toml

#: Until it is ready the API takes at most so many times the processor's time that these libraries' imports take: about
#: 1.7, and beyond 3 with torch among them. In seconds this is another number on every machine.
MAX_READY_SHARE = 3.0
LIBRARIES = "import alembic.context, fastapi, httpx, sqlalchemy, uvicorn"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CAESURA_"):
            monkeypatch.delenv(name)
    # The width of the terminal decides where help texts break.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path / "my [red] data")
    yield starter
    starter.close()


def test_a_first_start_shows_all_that_the_sdk_needs_and_ctrl_c_ends_it(serve: Starter) -> None:
    running = serve(CAESURA_WARM_SPARE="true")
    cpu = psutil.Process(running.process.pid).cpu_times()
    command = [sys.executable, "-c", f"{LIBRARIES}; import os; print(sum(os.times()[:2]))"]
    libraries_cpu_s = float(subprocess.run(command, capture_output=True, check=True).stdout)

    assert re.fullmatch(r"Caesura is ready at http://127\.0\.0\.1:\d+/v1", running.lines[0])
    assert running.lines[1] == f"  export OPENAI_BASE_URL={running.url}"
    assert re.fullmatch(r"  export OPENAI_API_KEY=sk-caesura-[A-Za-z0-9]{40}", running.lines[2])
    assert running.process.stdout is not None
    page = running.url.removesuffix("v1")
    assert running.process.stdout.readline() == f"or open {page} in a browser, and sign in with the same key\n"
    assert httpx.get(page).headers["content-type"].startswith("text/html")
    assert cpu.user + cpu.system < MAX_READY_SHARE * libraries_cpu_s
    health = httpx.get(running.url.removesuffix("/v1") + "/healthz").json()
    assert health == {"status": "ok", "version": __version__, "sandbox": find_level()}
    with OpenAI(**running.exported()) as client:
        assert [model.id for model in client.models.list()] == ["caesura-tiny"]
    key_file = serve.data_dir / "api_key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.read_text().strip() == running.exported()["api_key"]

    wait_until(lambda: running.children() != [], "the spare worker was started")
    children = running.children()
    assert running.end(signal.SIGINT) == 0
    assert not [child for child in children if child.is_running()]
    assert "Traceback" not in running.log


def test_a_later_start_shows_where_the_key_is_and_not_the_key(serve: Starter) -> None:
    serve.data_dir.mkdir()
    (serve.data_dir / "api_key").write_text("sk-kept\n")
    running = serve()

    assert "sk-kept" not in "\n".join(running.lines)
    assert running.exported() == {"base_url": running.url, "api_key": "sk-kept"}
    assert running.end(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_a_key_of_the_environment_is_the_one_that_serves(serve: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(CAESURA_API_KEY="sk-mine")
    monkeypatch.setenv("CAESURA_API_KEY", "sk-mine")

    assert "sk-mine" not in "\n".join(running.lines)
    assert running.exported()["api_key"] == "sk-mine"
    answers = [httpx.get(f"{running.url}/models", headers={"api-key": key}) for key in ("sk-mine", "sk-other")]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert not (serve.data_dir / "api_key").exists()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `caesura serve` tells before it ends."""
    monkeypatch.setattr(sys, "argv", ["caesura", "serve", *arguments])
    monkeypatch.setattr(cli, "configure", lambda *_: None)  # it would take the log from pytest
    with pytest.raises(SystemExit) as caught:
        cli.main()
    output, told = capsys.readouterr()
    assert (caught.value.code, output) == (2, "")
    return told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--port", "70000"],
            "The settings are not valid: port: Input should be less than or equal to 65535 (got 7000",
        ),
        (
            ["--device", "tpu"],
            "The settings are not valid: device: Input should be 'auto', 'cpu' or 'cuda' (got 'tpu')",
        ),
        (["--config", "[none].toml"], "The settings file '[none].toml' does not exist."),
        (["--host", "203.0.113.1", "--port", "0"], "Cannot listen on 203.0.113.1:0: Cannot assign requested address."),
        (["--data-dir", f"{__file__}/x", "--port", "0"], f"The data folder '{__file__}/x' cannot be used: Not a dir"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    told = refused(monkeypatch, capsys, *arguments)

    assert told.startswith(f"caesura: {message}")
    assert told.count("\n") == 1


def test_a_port_that_is_taken_is_told_with_a_remedy_and_no_key_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        told = refused(monkeypatch, capsys, "--port", port, "--data-dir", str(data_dir))

    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use. Set another --host or --port" in told
    assert not data_dir.exists()


def test_a_database_that_cannot_be_opened_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "caesura.db").mkdir()

    told = refused(monkeypatch, capsys, "--port", "0", "--data-dir", str(tmp_path))
    assert told.startswith("caesura: The server's database is locked or cannot be reached.")


def settings_of(*arguments: str) -> Settings:
    """What a command is given when these stand behind it."""
    given: list[Settings] = []
    app = typer.Typer()
    app.command()(cli.with_settings(given.append))
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return given[0]


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_setting_has_a_flag_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, needed in NEEDED.get(name, {}).items():
        monkeypatch.setenv(f"CAESURA_{key.upper()}", needed)
    flag, value = "--" + name.replace("_", "-"), VALUES[name]
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    arguments = [flag, text]
    if isinstance(value, bool):
        arguments = [flag if value else flag.replace("--", "--no-", 1)]

    assert plain(settings_of(*arguments))[name] == value
    assert plain(settings_of())[name] == plain(Settings())[name]


def test_flags_turn_on_what_the_environment_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAESURA_WARM_SPARE", "false")

    assert not settings_of().warm_spare
    assert settings_of("--warm-spare").warm_spare


def test_the_settings_file_is_named_by_a_flag_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml(tmp_path / "mine.toml", VALUES)
    by_flag = settings_of("--config", str(file))
    monkeypatch.setenv("CAESURA_CONFIG", str(file))

    assert plain(by_flag) == plain(settings_of()) == VALUES


def test_help_names_every_setting_and_its_default() -> None:
    help_text = CliRunner().invoke(cli.cli, ["serve", "--help"]).output

    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in help_text
        if not field.default_factory:
            assert field.default is None or f"(default: {field.default})" in re.sub(r"[\s│]+", " ", help_text)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_url_of_an_ipv6_address_can_be_used(serve: Starter) -> None:
    running = serve("--host", "::1")

    assert re.fullmatch(r"http://\[::1\]:\d+/v1", running.url)
    assert httpx.get(running.url.removesuffix("/v1") + "/healthz").status_code == 200
