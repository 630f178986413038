"""OpenAI's official client for Node, in small programs of its own language; what they assert themselves is in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.clients.conftest import ASKED, KEY, QUESTION
from tests.clients.install import CLIENT, NODE, PROGRAMS
from tests.serving import Running

TIMEOUT_S = 120

#: Runs a program; its lines, as JSON.
Run = Callable[[str], list[Any]]

pytestmark = pytest.mark.skipif(
    not (CLIENT / "node_modules" / "openai").is_dir(),
    reason="OpenAI's client for Node is not installed; `make .venv/installed-node` installs it",
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs beside what they import: Node looks for it in their own folder."""
    folder = shutil.copytree(PROGRAMS, tmp_path_factory.mktemp("node") / "programs")
    (folder / "node_modules").symlink_to(CLIENT / "node_modules")
    return folder


@pytest.fixture
def run(server: Running, programs: Path) -> Run:
    def run(program: str) -> list[Any]:
        environment = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        ended = subprocess.run(
            [NODE, programs / program, json.dumps(ASKED)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    return run


@pytest.fixture
def answer(client: OpenAI) -> dict[str, Any]:
    """What the Python client is answered."""
    choice = client.chat.completions.create(**ASKED).choices[0]
    return {"content": choice.message.content, "finish_reason": choice.finish_reason}


@pytest.mark.parametrize("program", ["chat.mjs", "chat_stream.mjs", "chat_stream_helper.mjs", "abort.mjs"])
def test_node_is_answered_what_python_is_answered(run: Run, answer: dict[str, Any], program: str) -> None:
    assert run(program) == [answer]


def test_node_parses_an_answer_of_a_schema(run: Run) -> None:
    ((review),) = run("chat_parse.mjs")

    assert review.keys() == {"verdict", "stars"}


def test_node_runs_the_tools_that_the_model_calls_and_a_stream_calls_the_same(run: Run) -> None:
    whole, streamed = run("tools.mjs")

    assert whole["calls"] == streamed["calls"]


@pytest.mark.parametrize("program", ["responses.mjs", "responses_stream.mjs"])
def test_node_reads_the_response_that_python_reads(run: Run, client: OpenAI, program: str) -> None:
    response = client.responses.create(model=ASKED["model"], input=QUESTION, temperature=0)

    assert run(program) == [{"output_text": response.output_text}]


def test_node_decodes_the_embedding_that_python_decodes(run: Run, client: OpenAI) -> None:
    embeddings = client.embeddings.create(model=ASKED["model"], input=["The sun rose over the sea.", "Bread"])

    assert run("embeddings.mjs")[0]["embedding"] == pytest.approx(embeddings.data[0].embedding, abs=1e-6)


def test_node_is_told_each_error_in_its_class(run: Run) -> None:
    too_long = {
        "status": 400,
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
    }

    assert run("errors.mjs") == [
        {
            "too_long": too_long,
            "too_long_stream": too_long,
            "unknown_model": {
                "status": 404,
                "type": "invalid_request_error",
                "code": "model_not_found",
                "param": None,
            },
            "wrong_key": {
                "status": 401,
                "type": "invalid_request_error",
                "code": "invalid_api_key",
                "param": None,
            },
        }
    ]
