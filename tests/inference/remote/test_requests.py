"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from caesura.app import build_server
from caesura.errors import InvalidRequest, SettingsInvalid
from caesura.inference.engine import (
    Finished,
    Text,
)
from caesura.inference.remote import RemoteEngine
from caesura.inference.remote_wire import to_body
from caesura.settings import Settings
from tests.inference.fake_vllm import BASE, FakeVllm
from tests.inference.remote.asking import (
    CHAT,
    COMPLETION,
    TOOL,
    USAGE,
    ask,
    script,
    stream,
)

# The request.


def test_no_torch_is_imported() -> None:
    code = "import sys, caesura.inference.remote; assert not {'torch', 'transformers'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_chat_asks_with_every_parameter_and_streams(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    request = replace(
        CHAT,
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.25,
        presence_penalty=-1.0,
        logit_bias={17: -100.0},
        seed=3,
        stop=("a", "b"),
        top_logprobs=2,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        json_schema={"type": "object"},
    )

    ask(open_engine(), request)

    schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    expected = {
        "model": BASE,
        "messages": CHAT.messages,
        "n": 1,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.25,
        "presence_penalty": -1.0,
        "logit_bias": {"17": -100.0},
        "seed": 3,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert fake.requests == [("/chat/completions", expected)]


def test_what_was_not_asked_for_is_not_sent() -> None:
    always = {"model", "n", "temperature", "top_p", "frequency_penalty", "presence_penalty", "stream", "stream_options"}

    assert to_body(CHAT, BASE).keys() == always | {"messages"}
    assert to_body(COMPLETION, BASE).keys() == always | {"prompt"}


def test_a_named_tool_is_chosen_by_its_name() -> None:
    body = to_body(replace(CHAT, tools=[TOOL], tool_choice=("function", "f")), BASE)

    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}


def test_a_top_p_of_zero_is_sent_as_the_small_number_that_vllm_takes() -> None:
    assert 0 < to_body(replace(CHAT, top_p=0.0), BASE)["top_p"] < 1e-5


def test_a_completion_asks_with_text_or_tokens(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    chunk = {"choices": [{"index": 0, "text": " upon", "logprobs": None, "finish_reason": "length"}]}
    fake.answer = script(stream(chunk, USAGE))

    pieces = ask(open_engine(), replace(COMPLETION, echo=True, top_logprobs=0, max_tokens=1))
    ask(open_engine(), replace(COMPLETION, prompt=[1, 2]))

    (path, body), (_, of_tokens) = fake.requests
    assert path == "/completions"
    assert (body["prompt"], body["echo"], body["logprobs"], body["max_tokens"]) == ("Once", True, 0, 1)
    assert of_tokens["prompt"] == [1, 2]
    assert pieces == [Text(" upon"), Finished("length", 5, 2)]


def test_a_base_of_the_hub_is_asked_for_by_its_id_there(open_engine: Callable[..., RemoteEngine]) -> None:
    with pytest.raises(InvalidRequest) as raised:  # the fake serves another
        ask(open_engine(), replace(CHAT, base="hub"))

    assert (raised.value.param, raised.value.code) == ("model", "model_not_available")


def test_the_key_is_that_of_the_environment(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = "sk-right"
    monkeypatch.setenv("KEY_OF_THE_ENGINE", "sk-right")

    assert ask(open_engine(engine_api_key_env="KEY_OF_THE_ENGINE"))[-1] == Finished("stop", 5, 2)


def test_without_its_key_the_server_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY_OF_THE_ENGINE", raising=False)
    settings = {"data_dir": tmp_path, "engine_url": "http://127.0.0.1:1", "engine_api_key_env": "KEY_OF_THE_ENGINE"}

    with pytest.raises(SettingsInvalid, match="KEY_OF_THE_ENGINE"):
        build_server(Settings.model_validate(settings))


def test_what_is_no_url_is_told_at_the_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine_url="http://127.0.0.1:port/v1")

    with pytest.raises(SettingsInvalid, match="'engine_url' is no URL"):
        build_server(settings)


def test_the_server_asks_the_remote_engine_where_the_settings_name_one(
    fake: FakeVllm, url: str, tmp_path: Path
) -> None:
    models = {BASE: {"path": str(tmp_path)}}
    server = build_server(Settings.model_validate({"data_dir": tmp_path, "engine_url": url, "models": models}))

    assert isinstance(server.engine, RemoteEngine)
    ask(server.engine)
    assert len(fake.requests) == 1
