"""`caesura chat` and `caesura graders`."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from caesura.errors import EngineUnavailable
from caesura.inference.engine import Finished, Piece, Text
from tests.api.service import CHECK, KEY, Service, Waiting
from tests.commands.conftest import Command


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a text on standard input."""

    def put(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return put


def asked(service: Service) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in service.engine.requests[-1].messages]


def test_a_question_is_answered_as_it_comes(caesura: Command, service: Service) -> None:
    options = ("--system", "Be kind.", "--temperature", "0", "--max-tokens", "9")
    done = caesura("chat", "caesura-tiny", "Hi [bold]you", *options)

    assert (done.code, done.out, done.err) == (0, "Hello world\n", "")
    assert asked(service) == [("system", "Be kind."), ("user", "Hi [bold]you")]
    request = service.engine.requests[-1]
    assert (request.temperature, request.max_tokens) == (0, 9)


def test_a_question_may_come_on_standard_input(caesura: Command, service: Service, say: Callable[[str], None]) -> None:
    say("Is it\nlate?")
    answer = caesura("chat", "caesura-tiny", "--json").json

    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert asked(service) == [("user", "Is it\nlate?")]


def test_what_is_wrong_is_told(caesura: Command, service: Service) -> None:
    done = caesura("chat", "none", "Hi")
    assert done.code == 1
    assert "none" in done.error
    service.engine.next_pieces = [[Text("Hel"), EngineUnavailable("The engine died.")]]
    broken = caesura("chat", "caesura-tiny", "Hi")
    assert (broken.code, broken.out, broken.err) == (1, "Hel", "error: The engine died.\n")


def test_an_engine_that_is_starting_is_waited_for(
    caesura: Command, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("caesura.commands.client.time.sleep", waited.append)
    service.engine.next_pieces = [[EngineUnavailable()], [EngineUnavailable()]]

    assert caesura("chat", "caesura-tiny", "Hi").out == "Hello world\n"
    assert waited == [2.0, 2.0]


def test_a_conversation_goes_on_from_what_was_said(service: Service) -> None:
    broken: list[Piece | Exception | Waiting] = [Text("Hm"), EngineUnavailable("The engine died.")]
    service.engine.next_pieces = [[Text("Fine."), Finished("stop", 1, 1)], broken]
    service.engine.pieces = [Text("Oslo."), Finished("stop", 1, 1)]
    environment = {**os.environ, "OPENAI_BASE_URL": f"{service.http_server.origin}/v1", "OPENAI_API_KEY": KEY}
    ours, theirs = pty.openpty()
    talking = subprocess.Popen(
        [sys.executable, "-m", "caesura.commands.main", "chat", "caesura-tiny"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    os.write(ours, b"How are you?\n\nSweden?\nNorway?\n\x04")
    out, told = talking.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)

    assert talking.returncode == 0
    assert out.replace("> ", "") == "Fine.\nHm\nOslo.\n\n"
    assert told.startswith("Talking to caesura-tiny.")
    assert told.endswith("\nerror: The engine died.\n")
    assert asked(service) == [("user", "How are you?"), ("assistant", "Fine."), ("user", "Norway?")]


@pytest.fixture
def grader(tmp_path: Path) -> str:
    (tmp_path / "grader.json").write_text(json.dumps(CHECK))
    return "grader.json"


def test_a_grader_is_checked(caesura: Command, grader: str, tmp_path: Path) -> None:
    assert caesura("graders", "validate", grader).out == "grader.json is a valid grader.\n"
    assert caesura("graders", "validate", grader, "--json").json == {"grader": CHECK}
    (tmp_path / "bad.json").write_text(json.dumps({**CHECK, "operation": "magic"}))
    refused = caesura("graders", "validate", "bad.json")
    assert refused.code == 1
    assert "operation" in refused.error


def test_a_grader_is_tried_on_an_answer(
    caesura: Command, grader: str, tmp_path: Path, say: Callable[[str], None]
) -> None:
    (tmp_path / "item.json").write_text('{"answer": "1"}')
    right = ("graders", "run", grader, "--answer", "1", "--item")

    assert caesura(*right, '{"answer": "1"}').out == caesura(*right, "item.json").out == "reward 1\n"
    assert caesura(*right, '{"answer": "2"}', "--json").json["reward"] == 0
    say("1")
    assert caesura("graders", "run", grader, "--answer", "-", "--item", "item.json").out == "reward 1\n"


def test_the_parts_of_a_grader_are_told(caesura: Command, tmp_path: Path) -> None:
    multi = {"type": "multi", "name": "half", "graders": {"exact": CHECK}, "calculate_output": "exact / 2"}
    (tmp_path / "multi.json").write_text(json.dumps(multi))

    done = caesura("graders", "run", "multi.json", "--answer", "1", "--item", '{"answer": "1"}')
    assert done.out == "reward 0.5\n  exact 1\n"


def test_a_grader_that_fails_is_told(caesura: Command, grader: str) -> None:
    done = caesura("graders", "run", grader, "--answer", "1", "--item", "{}")

    assert done.code == 1
    assert done.out.startswith("reward 0\nThe grader failed: ")
    assert caesura("graders", "run", grader, "--answer", "1", "--item", "{}", "--json").code == 1
    wrong = caesura("graders", "run", grader, "--answer", "1", "--item", "[1]")
    assert (wrong.code, wrong.error) == (2, "--item must be a JSON object, or a file with one.")
