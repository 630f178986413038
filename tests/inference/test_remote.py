"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from caesura.app import build_server
from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest, SettingsInvalid
from caesura.inference import remote
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Finished,
    Piece,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolCall,
)
from caesura.inference.remote import RemoteEngine, open_remote_engine
from caesura.inference.remote_wire import Answers, to_body
from caesura.jobs import Artifact
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files
from tests.inference.fake_vllm import BASE, DONE, FakeVllm, Refused, error, error_body, event, serve

CHAT = ChatRequest(BASE, None, [{"role": "user", "content": "Hi"}])
COMPLETION = CompletionRequest(BASE, None, "Once")
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
#: An adapter's files, as far as the fake looks at them.
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


def delta(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}


#: A whole answer.
HELLO = [delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta(finish_reason="stop")]


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(map(event, events)) + DONE


def script(*parts: bytes | threading.Event) -> Callable[..., AsyncGenerator[bytes, None]]:
    """Every answer is these bytes; at an event it waits until the test sets it."""

    async def answer(_path: str, _body: dict[str, Any], _adapter: Path | None) -> AsyncGenerator[bytes, None]:
        for part in parts:
            if isinstance(part, threading.Event):
                while not part.is_set():
                    await asyncio.sleep(0.005)
            else:
                yield part

    return answer


def refuse(response: Response) -> Callable[..., AsyncGenerator[bytes, None]]:
    async def answer(_path: str, _body: dict[str, Any], _adapter: Path | None) -> AsyncGenerator[bytes, None]:
        raise Refused(response)
        yield b""

    return answer


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(script(stream(*HELLO, USAGE)))


@pytest.fixture
def url(fake: FakeVllm) -> Iterator[str]:
    with serve(fake) as url:
        yield url


@pytest.fixture
def open_engine(url: str, tmp_path: Path) -> Callable[..., RemoteEngine]:
    def open_engine(**settings: Any) -> RemoteEngine:
        models = {BASE: {"path": str(tmp_path)}, "hub": {"path": "acme/hub-model"}}
        values = {"engine_url": url, "data_dir": tmp_path, "models": models} | settings
        return open_remote_engine(Settings.model_validate(values), storage_in(tmp_path), tmp_path / "blobs")

    return open_engine


@pytest.fixture
def adapter(tmp_path: Path) -> Artifact:
    return put_files(storage_in(tmp_path), "adapters", FILES)


def storage_in(folder: Path) -> LocalStorage:
    return LocalStorage(folder / "blobs")


async def answer(engine: RemoteEngine, request: ChatRequest | CompletionRequest = CHAT) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


def ask(engine: RemoteEngine, request: ChatRequest | CompletionRequest | EmbedRequest = CHAT) -> Any:
    """What the engine answers to one request, after which it is closed."""

    async def run() -> Any:
        try:
            return await (engine.embed(request) if isinstance(request, EmbedRequest) else answer(engine, request))
        finally:
            await engine.close()

    return asyncio.run(run())


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


# The answer.


def test_the_pieces_are_those_of_the_chunks_and_the_usage_is_the_last(
    open_engine: Callable[..., RemoteEngine],
) -> None:
    assert ask(open_engine()) == [Text("Hel"), Text("lo"), Finished("stop", 5, 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_bytes_may_be_cut_anywhere(size: int) -> None:
    """Also in a character, and characters that other programs take for a line's end are none."""
    data = stream(delta(content="é\u2028\x85ß"), delta(finish_reason="length"), USAGE).replace(b"\n", b"\r\n")
    answers = Answers(CHAT)

    pieces = [piece for start in range(0, len(data), size) for piece in answers.feed(data[start : start + size])]

    assert pieces + answers.finish() == [Text("é\u2028\x85ß"), Finished("length", 5, 2)]


def test_comments_and_other_fields_of_the_stream_are_passed_over() -> None:
    answers = Answers(CHAT)

    assert answers.feed(b": ping\n\nid: 3\n" + stream(*HELLO, USAGE)) == [Text("Hel"), Text("lo")]


def test_several_answers_have_each_its_own_tokens(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    def so_far(num_tokens: int) -> dict[str, Any]:
        return {"usage": {"prompt_tokens": 5, "completion_tokens": num_tokens}}

    total = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 8}}
    fake.answer = script(
        stream(
            delta(1, content="b") | so_far(1),
            delta(0, content="a") | so_far(1),
            delta(1, "stop") | so_far(6),
            delta(0, "length") | so_far(2),
            total,
        )
    )

    pieces = ask(open_engine(), replace(CHAT, n=2))

    assert fake.requests[0][1]["stream_options"]["continuous_usage_stats"] is True
    assert pieces == [Text("b", 1), Text("a", 0), Finished("length", 5, 2, 0), Finished("stop", 5, 6, 1)]


def test_where_each_answers_tokens_are_not_told_the_sum_is_right() -> None:
    answers = Answers(replace(CHAT, n=2))
    answers.feed(stream(delta(0, "stop"), delta(1, "stop"), USAGE))

    assert [finished.completion_tokens for finished in answers.finish()] == [0, 2]


def test_an_echo_alone_samples_nothing() -> None:
    answers = Answers(replace(COMPLETION, echo=True, max_tokens=0))
    pieces = answers.feed(stream({"choices": [{"index": 0, "text": "Once", "finish_reason": "length"}]}, USAGE))

    assert pieces + answers.finish() == [Text("Once"), Finished("length", 5, 0)]


def test_calls_of_functions_become_pieces() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, "id": "x", "type": "function", "function": function}])

    answers = Answers(replace(CHAT, tools=[TOOL]))
    pieces = answers.feed(
        stream(
            call(0, name="f", arguments='{"a"'),
            call(0, name="f", arguments=": 1}"),  # some versions say the name again
            call(1, name="g"),
            call(1, arguments="{}"),
            delta(finish_reason="stop"),  # as vLLM says where the request names the function
            USAGE,
        )
    )

    assert pieces == [
        ToolCall(0, "f"),
        ToolArguments(0, '{"a"'),
        ToolArguments(0, ": 1}"),
        ToolCall(1, "g"),
        ToolArguments(1, "{}"),
    ]
    assert answers.finish() == [Finished("tool_calls", 5, 2)]


def test_log_probabilities_of_a_chat_are_told_with_their_tokens() -> None:
    def told(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [told("é", -0.5) | {"top_logprobs": [told("é", -0.5), told("e", -1.0), told("a", -2.0)]}]
    chunk = {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": content}}]}

    (piece,) = Answers(replace(CHAT, top_logprobs=2)).feed(event(chunk))

    top = (TokenLogprob("é", -0.5, (0xC3, 0xA9)), TokenLogprob("e", -1.0, (0x65,)))
    assert piece == Text("", logprobs=(TokenLogprob("é", -0.5, (0xC3, 0xA9), top),))
    assert Answers(CHAT).feed(event(chunk)) == []


def test_log_probabilities_of_a_completion_are_ranked_and_as_many_as_asked_for() -> None:
    logprobs = {
        "text_offset": [0, 1],
        "tokens": ["A", "b"],
        "token_logprobs": [None, -3.0],
        "top_logprobs": [None, {"b": -3.0, "y": -2.0, "x": -1.0}],
    }
    chunk = {"choices": [{"index": 0, "text": "Ab", "logprobs": logprobs, "finish_reason": None}]}

    (piece,) = Answers(replace(COMPLETION, top_logprobs=2)).feed(event(chunk))

    top = (TokenLogprob("x", -1.0, (0x78,)), TokenLogprob("y", -2.0, (0x79,)))
    assert piece == Text("Ab", logprobs=(TokenLogprob("A", None, (0x41,)), TokenLogprob("b", -3.0, (0x62,), top)))


def test_embeddings_have_unit_length_and_the_order_of_the_inputs(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    data = [{"index": 1, "embedding": [0, 0]}, {"index": 0, "embedding": [3, 4]}]
    fake.answer = script(json.dumps({"data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode())

    embeddings = ask(open_engine(), EmbedRequest(["a", ""], BASE))

    assert embeddings == Embeddings([[0.6, 0.8], [0, 0]], 9)
    assert fake.requests == [("/embeddings", {"model": BASE, "input": ["a", ""], "encoding_format": "float"})]


def test_embeddings_without_a_base_are_those_of_the_embedding_model(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b'{"data": [{"index": 0, "embedding": [2]}], "usage": {"prompt_tokens": 1}}')

    assert ask(open_engine(embedding_model=BASE), EmbedRequest(["a"])).vectors == [[1.0]]
    with pytest.raises(InvalidRequest, match="No embedding model is configured"):
        ask(open_engine(), EmbedRequest(["a"]))


def test_no_inputs_have_no_embeddings(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    assert ask(open_engine(), EmbedRequest([], BASE)) == Embeddings([], 0)
    assert fake.requests == []


# Adapters.


def test_an_adapter_is_loaded_from_the_data_folder_before_its_first_use(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, tmp_path: Path
) -> None:
    async def run() -> None:
        engine = open_engine()
        for _ in range(2):
            await answer(engine, replace(CHAT, adapter=adapter))
        await engine.close()

    asyncio.run(run())

    (load,) = fake.loads
    assert Path(load["lora_path"]) == tmp_path / "blobs" / adapter.prefix
    assert [body["model"] for _, body in fake.requests] == [load["lora_name"]] * 2


def test_first_requests_at_the_same_time_load_an_adapter_once(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    async def run() -> None:
        engine = open_engine()
        await asyncio.gather(*(answer(engine, replace(CHAT, adapter=adapter)) for _ in range(4)))
        await engine.close()

    asyncio.run(run())

    assert len(fake.loads) == 1
    assert len(fake.requests) == 4


def test_adapters_have_names_of_their_own(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, tmp_path: Path
) -> None:
    async def run() -> None:
        engine = open_engine()
        for one in (adapter, put_files(storage_in(tmp_path), "adapters", FILES)):
            await answer(engine, replace(CHAT, adapter=one))
        await engine.close()

    asyncio.run(run())

    assert len({load["lora_name"] for load in fake.loads}) == 2


def test_an_adapter_that_is_there_already_is_used(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    for _ in range(2):  # the second engine knows nothing of the first
        assert ask(open_engine(), replace(CHAT, adapter=adapter))[-1] == Finished("stop", 5, 2)

    assert len(fake.loads) == 1


def test_an_adapter_that_is_loaded_between_the_look_and_the_load_is_used(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    fake.lists_adapters = False
    for _ in range(2):
        assert ask(open_engine(), replace(CHAT, adapter=adapter))[-1] == Finished("stop", 5, 2)

    assert len(fake.loads) == 2


def test_an_adapter_that_the_server_dropped_is_loaded_again(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    async def run() -> list[list[Piece]]:
        engine = open_engine()
        first = await answer(engine, replace(CHAT, adapter=adapter))
        fake.restart()
        others = await asyncio.gather(*(answer(engine, replace(CHAT, adapter=adapter)) for _ in range(3)))
        await engine.close()
        return [first, *others]

    answers = asyncio.run(run())

    assert all(pieces == answers[0] for pieces in answers)
    assert len(fake.adapters) == 1


def test_what_is_not_served_for_an_adapter_is_no_dropped_adapter(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    fake.answer = refuse(JSONResponse({"detail": "Not Found"}, 404))

    with pytest.raises(InvalidRequest, match="does not serve"):
        ask(open_engine(), EmbedRequest(["a"], BASE, adapter))

    assert len(fake.loads) == 1


def test_a_server_that_keeps_no_adapter_is_unavailable(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    """A balancer, say, that sends every request elsewhere."""
    fake.refuses_load = Response("Success", 200)

    with pytest.raises(EngineUnavailable, match="dropped"):
        ask(open_engine(), replace(CHAT, adapter=adapter))

    assert len(fake.loads) == 2


def test_a_damaged_adapter_is_never_loaded(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "blobs" / adapter.key("adapter_model.safetensors")).write_bytes(b"WEIGHTS")

    with pytest.raises(BlobDamaged):
        ask(open_engine(), replace(CHAT, adapter=adapter))

    assert fake.loads == []


def test_an_adapter_is_not_put_on_another_base(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    with pytest.raises(InvalidRequest, match="'acme/hub-model'") as raised:
        ask(open_engine(), replace(CHAT, base="hub", adapter=adapter))

    assert raised.value.param == "model"
    assert fake.loads == []


def test_a_server_without_the_adapters_endpoints_is_told_how_to_start(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    fake.loads_adapters = False

    with pytest.raises(InvalidRequest, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True") as raised:
        ask(open_engine(), replace(CHAT, adapter=adapter))

    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(404, "Loading lora x failed: No adapter found for /secret/folder"), "under the same path"),
        (error(500, "LoRA rank 64 is greater than max_lora_rank 16 in /secret/folder"), "max-lora-rank"),
        (error(400, "Call to add_lora method failed: LoRA is not enabled."), "enable-lora"),
    ],
)
def test_an_adapter_that_cannot_be_taken_is_told_without_folders_and_tried_again(
    refusal: Response,
    words: str,
    fake: FakeVllm,
    open_engine: Callable[..., RemoteEngine],
    adapter: Artifact,
) -> None:
    fake.refuses_load = refusal

    async def run() -> str:
        engine = open_engine()
        with pytest.raises(InvalidRequest, match=words) as raised:
            await answer(engine, replace(CHAT, adapter=adapter))
        assert raised.value.param == "model"
        fake.refuses_load = None
        await answer(engine, replace(CHAT, adapter=adapter))
        await engine.close()
        return raised.value.message

    assert "secret" not in asyncio.run(run())


def test_who_leaves_while_an_adapter_is_loaded_does_not_end_that_for_the_others(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    get_files = remote.get_files

    def wait_and_get(*of: Any) -> dict[str, bytes]:
        goes_on.wait(20)
        return get_files(*of)

    monkeypatch.setattr(remote, "get_files", wait_and_get)

    async def run() -> list[Piece]:
        engine = open_engine()
        first, second = (asyncio.create_task(answer(engine, replace(CHAT, adapter=adapter))) for _ in range(2))
        while not engine._adapters._loads:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        goes_on.set()
        pieces = await second
        await engine.close()
        return pieces

    assert asyncio.run(run())[-1] == Finished("stop", 5, 2)
    assert len(fake.loads) == 1


# Errors.


@pytest.mark.parametrize(
    ("request_", "refusal", "param", "code"),
    [
        (
            CHAT,
            error(400, "maximum context length is 512", param="input_tokens"),
            "messages",
            "context_length_exceeded",
        ),
        (CHAT, error(400, "the model's context length is only 512"), "messages", "context_length_exceeded"),
        (COMPLETION, error(400, "maximum context length is 512"), "prompt", "context_length_exceeded"),
        (
            CHAT,
            JSONResponse({"error": {"message": "Too long.", "code": "context_length_exceeded"}}, 400),
            "messages",
            "context_length_exceeded",
        ),
        (CHAT, error(400, "Bad value.", param="top_logprobs"), "top_logprobs", None),
        (CHAT, error(400, "token_id(s) [9999] in logit_bias contain out-of-vocab token ids."), "logit_bias", None),
        (COMPLETION, error(400, "Token id 9999 is out of vocabulary"), "prompt", None),
        (replace(CHAT, tools=[TOOL]), error(400, '"auto" tool choice requires --x'), "tools", None),
        (
            replace(CHAT, json_schema={}),
            error(400, "The provided JSON schema contains features not supported by xgrammar."),
            "response_format.json_schema.schema",
            None,
        ),
        (CHAT, error(400, "Chat template: roles must alternate"), "messages", None),
        (CHAT, JSONResponse({"detail": "Something is wrong."}, 422), None, None),
        (CHAT, error(501, "Not done.", "NotImplementedError"), None, None),
        (CHAT, Response(b"\xff bare", 400), None, None),
    ],
)
def test_a_fault_of_the_request_is_told_as_such(
    request_: ChatRequest | CompletionRequest,
    refusal: Response,
    param: str | None,
    code: str | None,
    fake: FakeVllm,
    open_engine: Callable[..., RemoteEngine],
) -> None:
    fake.answer = refuse(refusal)

    with pytest.raises(InvalidRequest) as raised:
        ask(open_engine(), request_)

    assert (raised.value.param, raised.value.code) == (param, code)
    told = json.dumps(raised.value.message, ensure_ascii=False)[1:-1]
    assert told in bytes(refusal.body).decode(errors="replace")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(500, "EngineCore encountered an issue."), "status 500"),
        (Response("upstream", 502), "status 502"),
        (error(503, "The model is not ready"), "status 503"),
        (error(429, "Slow down"), "too much to do"),
        (JSONResponse({"error": "Unauthorized"}, 401), "engine_api_key_env"),
        (Response("no", 403), "engine_api_key_env"),
        (RedirectResponse("http://127.0.0.1:9/v1", 307), "redirect"),
    ],
)
def test_what_time_or_the_operator_may_heal_is_unavailable_and_asked_once(
    refusal: Response, words: str, fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = refuse(refusal)

    with pytest.raises(EngineUnavailable, match="'engine_url'") as raised:
        ask(open_engine())

    assert words in raised.value.message
    assert len(fake.requests) == 1


def test_neither_the_url_nor_the_key_is_told(
    fake: FakeVllm,
    open_engine: Callable[..., RemoteEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KEY_OF_THE_ENGINE", "sk-secret")
    caplog.set_level(logging.DEBUG, "caesura")
    for status, expected in ((401, EngineUnavailable), (400, InvalidRequest)):
        fake.answer = refuse(error(status, "Incorrect API key provided: sk-secret"))
        with pytest.raises(expected) as raised:
            ask(open_engine(engine_api_key_env="KEY_OF_THE_ENGINE"))
        assert "sk-secret" not in raised.value.message
        assert "127.0.0.1" not in raised.value.message

    assert "Incorrect API key provided: ***" in caplog.text
    assert "sk-secret" not in caplog.text


def test_a_url_that_leads_elsewhere_is_told(url: str, open_engine: Callable[..., RemoteEngine]) -> None:
    with pytest.raises(InvalidRequest, match="/v1"):
        ask(open_engine(engine_url=url.removesuffix("/v1")))


def test_a_server_that_is_not_there_is_unavailable(open_engine: Callable[..., RemoteEngine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with pytest.raises(EngineUnavailable, match="cannot be reached") as raised:
        ask(open_engine(engine_url=f"http://127.0.0.1:{port}/v1"))

    assert str(port) not in raised.value.message


def test_a_server_that_is_silent_is_not_waited_for_for_ever(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_TIMEOUT_S", 0.2)
    released = threading.Event()
    fake.answer = script(event(HELLO[1]), released)
    try:
        with pytest.raises(EngineUnavailable, match="silent"):
            ask(open_engine())
    finally:
        released.set()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"choices": []}',
        event(HELLO[1]),
        event(HELLO[1]) + event(delta(finish_reason="stop")),
        event(HELLO[1]) + DONE,
        stream(*HELLO),
        stream(*HELLO)[: -len(DONE) - 4],
    ],
    ids=["empty", "no stream", "half", "no usage", "half and done", "done without usage", "half a line"],
)
def test_an_answer_that_breaks_off_is_unavailable(
    data: bytes, fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b"", data)

    with pytest.raises(EngineUnavailable):
        ask(open_engine())


@pytest.mark.parametrize(
    "nonsense",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: \xff\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        event({"choices": [{"index": "first"}]}),
        event({"choices": [{"index": 1, "delta": {"content": "of nobody"}}]}),
        event(delta(finish_reason="abort")),
        event(delta(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}])),
        event(delta(tool_calls=[{"index": 1, "function": {"name": "f"}}])),
    ],
)
def test_nonsense_is_unavailable(nonsense: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="makes no sense"):
        Answers(CHAT).feed(nonsense)


@pytest.mark.parametrize("reply", [b"", b"[]", b'{"data": [], "usage": {"prompt_tokens": 1}}'])
def test_embeddings_that_make_no_sense_are_unavailable(
    reply: bytes, fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b"", reply)

    with pytest.raises(EngineUnavailable, match="makes no sense"):
        ask(open_engine(), EmbedRequest(["a"], BASE))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (error_body(500, "Internal server error", "InternalServerError"), EngineUnavailable),
        ({"error": {"message": "no code"}}, EngineUnavailable),
        ({"error": "a bare text"}, EngineUnavailable),
        ({"object": "error", "message": "an older form", "code": 500}, EngineUnavailable),
        (error_body(400, "Failed to compile the grammar"), InvalidRequest),
    ],
)
def test_an_error_in_the_middle_ends_the_answer(told: dict[str, Any], expected: type[Exception]) -> None:
    answers = Answers(CHAT)
    assert answers.feed(event(HELLO[1])) == [Text("Hel")]

    with pytest.raises(expected):
        answers.feed(event(told) + DONE)


# Leaving.


def test_leaving_early_ends_the_work_there(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    fake.answer = script(event(HELLO[1]), threading.Event())

    async def run() -> None:
        engine = open_engine()
        async with aclosing(engine.generate(CHAT)) as pieces:
            assert await anext(pieces) == Text("Hel")
            assert not fake.has_ended.is_set()
        assert await asyncio.to_thread(fake.has_ended.wait, 20)
        await engine.close()

    asyncio.run(run())


def test_leaving_before_the_first_piece_ends_the_work_there(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b": waits for its place\n\n", threading.Event())

    async def run() -> None:
        engine = open_engine()
        waiting = asyncio.create_task(answer(engine))
        while not fake.requests:
            await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await asyncio.to_thread(fake.has_ended.wait, 20)
        await engine.close()

    asyncio.run(run())


def test_closing_ends_answers_in_the_making(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    fake.answer = script(event(HELLO[1]), threading.Event())

    async def run() -> None:
        engine = open_engine()
        async with aclosing(engine.generate(CHAT)) as pieces:
            await anext(pieces)
            going_on = asyncio.create_task(anext(pieces))
            await asyncio.sleep(0)
            await engine.close()
            with pytest.raises(EngineUnavailable):
                await going_on
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await answer(engine)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await engine.embed(EmbedRequest(["a"], BASE))
        await engine.close()
        assert await asyncio.to_thread(fake.has_ended.wait, 20)

    asyncio.run(run())


def test_closing_while_an_adapter_is_loaded_is_told_as_such(
    open_engine: Callable[..., RemoteEngine], adapter: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()
    monkeypatch.setattr(remote, "get_files", lambda *_of: closed.wait(20))

    async def run() -> None:
        engine = open_engine()
        waiting = asyncio.create_task(answer(engine, replace(CHAT, adapter=adapter)))
        while not engine._adapters._loads:
            await asyncio.sleep(0)
        await engine.close()
        closed.set()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await waiting

    asyncio.run(run())
