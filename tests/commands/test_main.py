"""The command line as a whole: which server it finds, what it says when there is none, what the shell completes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from caesura import __version__
from caesura.access import grant_access
from caesura.commands import main as main_module
from caesura.commands.main import PROGRAMS, cli
from caesura.executors import WORKER_ENVIRONMENT
from tests.api.service import KEY, HttpServer, Service
from tests.commands.conftest import Command, Done

HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "uvicorn", "openai")
LIST = ("models", "list", "--json")
PAGE = Path(__file__).parent.parent.parent / "docs" / "command-line.md"


def names(done: Done) -> list[str]:
    assert done.code == 0, done.err
    return [model["id"] for model in done.lines]


@pytest.fixture
def granted(service: Service, tmp_path: Path) -> str:
    """The data folder of a server that runs on this machine."""
    folder = tmp_path / "its data"
    folder.mkdir()
    (folder / "api_key").write_text(f"{KEY}\n")
    grant_access(folder, "127.0.0.1", int(service.http_server.origin.rpartition(":")[2]), "worker-key")
    return str(folder)


def test_help_and_version_import_nothing_that_serves_or_trains() -> None:
    script = f"import sys, caesura.commands.main; print([name for name in {HEAVY} if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_version_is_printed(elsewhere: Command) -> None:
    assert elsewhere("version").out == f"{__version__}\n"


def test_the_server_of_this_machine_is_found_by_its_data_folder(
    elsewhere: Command, granted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(elsewhere(*LIST, "--data-dir", granted)) == ["caesura-tiny"]
    monkeypatch.setenv("CAESURA_DATA_DIR", granted)
    assert names(elsewhere(*LIST)) == ["caesura-tiny"]
    # Of another server, which the shell knows for other programs.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    assert names(elsewhere(*LIST)) == ["caesura-tiny"]
    assert elsewhere(*LIST, "--api-key", "sk-wrong").code == 1


def test_the_settings_name_data_folder_and_key(elsewhere: Command, granted: str, tmp_path: Path) -> None:
    (Path(granted) / "api_key").unlink()
    assert "cannot be read: No such file" in elsewhere(*LIST, "--data-dir", granted).error
    (tmp_path / "caesura.toml").write_text(f'data_dir = "{granted}"\napi_key = "{KEY}"\n')

    assert names(elsewhere(*LIST)) == ["caesura-tiny"]


def test_an_address_in_the_environment_wins_and_an_option_over_it(
    elsewhere: Command, granted: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAESURA_DATA_DIR", granted)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    away = elsewhere(*LIST)
    assert (away.code, away.error.startswith("The server at http://127.0.0.1:9/v1 cannot be reached: ")) == (3, True)
    assert names(elsewhere(*LIST, "--base-url", f"{service.http_server.origin}/v1/")) == ["caesura-tiny"]
    monkeypatch.delenv("OPENAI_API_KEY")
    assert elsewhere(*LIST).error == (
        "There is no key for http://127.0.0.1:9/v1. Set OPENAI_API_KEY, or give one with --api-key."
    )
    assert elsewhere(*LIST).code == 2


def test_no_server_is_told_with_what_to_do(elsewhere: Command, tmp_path: Path) -> None:
    done = elsewhere(*LIST, "--data-dir", str(tmp_path))

    assert done.code == 3
    assert "Start one with `caesura serve`, or say where it is" in done.error


def test_a_wrong_key_is_told_in_one_line_and_is_not_shown(caesura: Command) -> None:
    done = caesura(*LIST, "--api-key", "sk-wrong-0123456789abcdef")

    assert done.code == 1
    assert "Incorrect API key provided" in done.error
    assert "sk-wrong-0123456789abcdef" not in done.error


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no address", "cannot be reached"),
        ("http://127.0.0.1:port/v1", "is no address of a server"),
        ("ftp://127.0.0.1/v1", "cannot be reached"),
    ],
)
def test_an_address_that_is_none_is_told(elsewhere: Command, url: str, words: str) -> None:
    done = elsewhere(*LIST, "--base-url", url, "--api-key", "k")

    assert done.code == 3
    assert words in done.error


def test_another_program_behind_the_address_is_told(elsewhere: Command, http_server: HttpServer) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>Hello</html>"})

    http_server.app = app
    for status in (200, 404):
        done = elsewhere(*LIST, "--base-url", f"{http_server.origin}/v1", "--api-key", "k")
        assert (done.code, f"is no server of this kind (status {status})" in done.error) == (3, True)


def test_a_command_that_does_not_exist_is_a_wrong_command_line(elsewhere: Command) -> None:
    assert elsewhere("jobs", "fly").error == "No such command 'fly'."
    assert elsewhere("jobs", "fly").code == 2
    shown = elsewhere("jobs")
    assert (shown.code, "create" in shown.out, shown.err) == (2, True, "")


def test_who_reads_no_further_ends_a_list_quietly(caesura: Command) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "caesura.commands.main", *LIST]
    listing = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)

    assert (listing.returncode, listing.stderr) == (1, "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_serves_or_trains_takes_the_place_of_this_program(
    name: str, elsewhere: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    become: list[Any] = []

    def execute(*arguments: Any) -> None:
        become.append(arguments)

    monkeypatch.setattr(os, "execve", execute)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    elsewhere(name, "x", "--flag", "-v", "--help")

    ((program, arguments, environment),) = become
    module = PROGRAMS[name][0]
    own = [name] if module == "caesura.cli" else []
    assert program == sys.executable
    assert arguments == [sys.executable, "-m", module, *own, "x", "--flag", "-v", "--help"]
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert environment["TOKENIZERS_PARALLELISM"] == WORKER_ENVIRONMENT["TOKENIZERS_PARALLELISM"]


# Completion.

Complete = Callable[..., list[str]]


@pytest.fixture
def complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash is told when a line of these words is to be completed at its last one."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_CAESURA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("caesura", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            main_module.main([])
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return ask


def test_commands_options_and_what_the_server_has_are_completed(
    complete: Complete, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, lease = service.start_job()
    service.finish(lease, 1)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{service.http_server.origin}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    assert complete("jo") == ["jobs"]
    assert "--learning-rate-multiplier" in complete("jobs", "create", "x", "--learning")
    assert complete("jobs", "watch", "ftjob-") == [job.id]
    assert complete("jobs", "watch", "x") == []
    assert job.training_file in complete("files", "show", "file-")
    assert complete("chat", "ft:") == [job.model_name]
    assert complete("jobs", "create", "x", "--model", "caesura-t") == ["caesura-tiny"]


def test_without_a_server_nothing_is_completed_and_nothing_said(
    complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete("jobs", "watch", "ftjob-") == []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and answers none
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert complete("jobs", "watch", "ftjob-") == []


# The page.


def commands() -> list[str]:
    """As they are typed: `caesura jobs list`."""
    root: Any = typer.main.get_command(cli)
    found: list[str] = []
    for name, command in root.commands.items():
        subcommands = getattr(command, "commands", None)
        found += [name] if subcommands is None else [f"{name} {subcommand}" for subcommand in subcommands]
    return [f"caesura {name}" for name in found]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_on_the_page(command: str) -> None:
    assert command in PAGE.read_text()


@pytest.mark.parametrize("code", list(main_module.ExitCode))
def test_every_exit_code_is_on_the_page(code: int) -> None:
    assert f"\n| {int(code)} |" in PAGE.read_text()
