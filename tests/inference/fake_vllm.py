"""vLLM as its clients see it: its endpoints, and the form of its answers and errors, over a script or over any engine.

The form is that of vLLM 0.10 to 0.19: `vllm/entrypoints/openai/`, `serving_models.py` for the adapters.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from caesura.errors import InvalidRequest
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Engine,
    Finished,
    Piece,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolCall,
)
from caesura.inference.grammar import build_constraint
from caesura.inference.sampler import LocalSampling, Parameters, Sample
from caesura.jobs import Artifact
from caesura.models.loading import Base
from caesura.models.lora import from_files
from tests.api.service import HttpServer

BASE = "micro"
DONE = b"data: [DONE]\n\n"

#: Answers a request at a path of the API, such as /chat/completions: its body, and the adapter that it names if any.
Answer = Callable[[str, dict[str, Any], Path | None], AsyncGenerator[bytes, None]]


class Refused(Exception):
    """In the place of an answer that has not begun."""

    def __init__(self, response: Response) -> None:
        self.response = response


def error(status: int, message: str, type: str = "BadRequestError", param: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, type, param), status)


def error_body(
    status: int, message: str, type: str = "BadRequestError", param: str | None = None
) -> dict[str, dict[str, Any]]:
    return {"error": {"message": message, "type": type, "param": param, "code": status}}


def event(value: dict[str, Any]) -> bytes:
    """As `model_dump_json` writes it: UTF-8, nothing escaped that need not be."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


@dataclass
class FakeVllm:
    answer: Answer
    #: What it serves, by the names that it was started with.
    bases: tuple[str, ...] = (BASE,)
    #: Whoever sends another is refused; None: no key is asked for.
    key: str | None = None
    #: It was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING and --enable-lora.
    loads_adapters: bool = True
    #: False: an adapter is loaded just after who asks has looked.
    lists_adapters: bool = True
    #: In the place of a load's answer.
    refuses_load: Response | None = None
    #: Those that are loaded, by their names.
    adapters: dict[str, Path] = field(default_factory=dict[str, Path])
    #: What was asked, without the adapters' endpoints and the list of models.
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    loads: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    #: An answer in the making has ended, however it did.
    has_ended: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        routes = [
            Route("/v1/models", self._models, methods=["GET"]),
            *(Route(f"/v1{path}", self._ask, methods=["POST"]) for path in ("/chat/completions", "/completions")),
            Route("/v1/embeddings", self._ask, methods=["POST"]),
        ]
        if self.loads_adapters:
            routes.append(Route("/v1/load_lora_adapter", self._load, methods=["POST"]))
            routes.append(Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]))
        await Starlette(routes=routes)(scope, receive, send)

    def restart(self) -> None:
        self.adapters.clear()

    def _is_refused(self, request: Request) -> bool:
        return self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"

    async def _models(self, request: Request) -> Response:
        if self._is_refused(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        names = (*self.bases, *(self.adapters if self.lists_adapters else ()))
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _ask(self, request: Request) -> Response:
        if self._is_refused(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        path, body = request.url.path.removeprefix("/v1"), await request.json()
        self.requests.append((path, body))
        name = body["model"]
        if name not in self.bases and name not in self.adapters:
            return error(404, f"The model `{name}` does not exist.", "NotFoundError", "model")
        answer = self.answer(path, body, self.adapters.get(name))
        try:
            first = await anext(answer)
        except Refused as refused:
            return refused.response
        media_type = "text/event-stream" if body.get("stream") else "application/json"
        return StreamingResponse(self._told(first, answer), media_type=media_type)

    async def _told(self, first: bytes, answer: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(answer):
                yield first
                async for part in answer:
                    yield part
        finally:
            self.has_ended.set()

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        self.loads.append(body)
        if self.refuses_load is not None:
            return self.refuses_load
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            words = "has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
            return error(400, f"The lora adapter '{name}' {words}", "InvalidUserInput")
        if not (folder / "adapter_config.json").exists():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        self.adapters[name] = folder
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


@contextmanager
def serve(fake: FakeVllm, at_end: Callable[[], Coroutine[Any, Any, None]] | None = None) -> Iterator[str]:
    """The URL at which it answers, as the setting `engine_url` has it. `at_end` is run in its event loop."""
    server = HttpServer()
    server.app = fake
    try:
        yield f"{server.origin}/v1"
    finally:
        if at_end is not None:
            server.run(at_end())
        server.close()


# Over any engine.


@dataclass
class OverEngine:
    """Answers as `engine` does, which works in the data folder `data_dir`."""

    engine: Engine
    data_dir: Path

    async def __call__(self, path: str, body: dict[str, Any], adapter: Path | None) -> AsyncGenerator[bytes, None]:
        artifact = None if adapter is None else self._artifact(adapter)
        try:
            if path == "/embeddings":
                yield await self._embed(body, artifact)
                return
            is_chat = path == "/chat/completions"
            request = _chat_request(body, artifact) if is_chat else _completion_request(body, artifact)
            writer = Writer(body)
            async with aclosing(self.engine.generate(request)) as pieces:
                first = await anext(pieces)  # what is refused is refused before the answer begins
                yield writer.begin() if is_chat else b""
                yield writer.write(first)
                async for piece in pieces:
                    yield writer.write(piece)
            yield writer.end()
        except InvalidRequest as refused:
            raise Refused(_refusal(refused)) from refused

    async def _embed(self, body: dict[str, Any], adapter: Artifact | None) -> bytes:
        embeddings = await self.engine.embed(EmbedRequest(body["input"], _base(body, adapter), adapter))
        data = [{"index": index, "embedding": vector} for index, vector in enumerate(embeddings.vectors)]
        return json.dumps({"data": data, "usage": {"prompt_tokens": embeddings.num_tokens}}).encode()

    def _artifact(self, folder: Path) -> Artifact:
        files = {
            path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.iterdir()
        }
        return Artifact(folder.relative_to((self.data_dir / "blobs").absolute()).as_posix(), files)


#: How vLLM words what the engine refuses with one of these parameters. It has no code, and mostly names no parameter.
_WORDS = {
    "logit_bias": "token_id(s) [1000000] in logit_bias contain out-of-vocab token ids. Vocabulary size: 2048",
    "prompt": "Token id 1000000 is out of vocabulary",
    "response_format.json_schema.schema": "The provided JSON schema contains features not supported by xgrammar.",
}
_TOO_LONG = "This model's maximum context length is 512 tokens. However, your request has 600 input tokens."


def _refusal(refused: InvalidRequest) -> Response:
    if refused.code == "context_length_exceeded":
        return error(400, _TOO_LONG, param="input_tokens")
    return error(400, _WORDS.get(refused.param or "", refused.message))


def _base(body: dict[str, Any], adapter: Artifact | None) -> str:
    return body["model"] if adapter is None else BASE


def _common(body: dict[str, Any]) -> dict[str, Any]:
    names = ("n", "max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")
    return {name: body[name] for name in names if name in body} | {
        "logit_bias": {int(token): bias for token, bias in body.get("logit_bias", {}).items()},
        "stop": tuple(body.get("stop", ())),
    }


def _chat_request(body: dict[str, Any], adapter: Artifact | None) -> ChatRequest:
    choice = body.get("tool_choice", "auto")
    format = body.get("response_format")
    return ChatRequest(
        _base(body, adapter),
        adapter,
        body["messages"],
        **_common(body),
        top_logprobs=body["top_logprobs"] if body.get("logprobs") else None,
        tools=body.get("tools"),
        tool_choice=choice if isinstance(choice, str) else ("function", choice["function"]["name"]),
        parallel_tool_calls=body.get("parallel_tool_calls", True),
        json_schema=None if format is None else format["json_schema"]["schema"],
    )


def _completion_request(body: dict[str, Any], adapter: Artifact | None) -> CompletionRequest:
    return CompletionRequest(
        _base(body, adapter),
        adapter,
        body["prompt"],
        **_common(body),
        top_logprobs=body.get("logprobs"),
        echo=body.get("echo", False),
    )


class Writer:
    """The chunks of the answers to one request."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._num_choices = body["n"]
        self._is_chat = "messages" in body
        self._is_named = isinstance(body.get("tool_choice"), dict)
        self._tells_each = body["stream_options"].get("continuous_usage_stats", False)
        self._num_prompt_tokens = self._num_tokens = 0

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(self._choice(index, delta=role) for index in range(self._num_choices))

    def write(self, piece: Piece) -> bytes:
        match piece:
            case Text(text, index, logprobs) if self._is_chat:
                return self._choice(index, delta={"content": text}, logprobs=_chat_logprobs(logprobs))
            case Text(text, index, logprobs):
                return self._choice(index, text=text, logprobs=_completion_logprobs(logprobs))
            case ToolCall(call, name, index):
                begun = {"index": call, "id": f"call-{call}", "type": "function"}
                return self._choice(
                    index, delta={"tool_calls": [begun | {"function": {"name": name, "arguments": ""}}]}
                )
            case ToolArguments(call, text, index):
                return self._choice(index, delta={"tool_calls": [{"index": call, "function": {"arguments": text}}]})
            case Finished(reason, num_prompt_tokens, num_tokens, index):
                if self._is_named and reason == "tool_calls":
                    reason = "stop"
                self._num_prompt_tokens = num_prompt_tokens
                self._num_tokens += num_tokens
                last = {"delta": {"content": ""}} if self._is_chat else {"text": ""}
                usage = self._usage(num_tokens) if self._tells_each else {}
                return self._choice(index, **last, finish_reason=reason, usage=usage)

    def end(self) -> bytes:
        return event({"choices": []} | self._usage(self._num_tokens)) + DONE

    def _choice(self, index: int, usage: dict[str, Any] | None = None, **choice: Any) -> bytes:
        return event({"choices": [{"index": index, "logprobs": None, "finish_reason": None} | choice]} | (usage or {}))

    def _usage(self, num_tokens: int) -> dict[str, Any]:
        return {"usage": {"prompt_tokens": self._num_prompt_tokens, "completion_tokens": num_tokens}}


def _chat_logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    def tell(told: TokenLogprob) -> dict[str, Any]:
        return {"token": told.token, "logprob": told.logprob, "bytes": list(told.bytes)}

    return {"content": [tell(one) | {"top_logprobs": [*map(tell, one.top)]} for one in logprobs]} if logprobs else None


def _completion_logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    """The sampled token is among the likeliest, even where it is one too many."""
    if not logprobs:
        return None
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [
            None if one.logprob is None else {one.token: one.logprob} | {top.token: top.logprob for top in one.top}
            for one in logprobs
        ],
    }


# Over a decoder: completions of tokens, as a trainer asks for them.


class OverDecoder:
    """Answers prompts of token ids with the tokens and their log-probabilities, by the adapters' own files.

    `change`: what is told in the place of a log-probability.
    """

    def __init__(self, base: Base, sampling: LocalSampling, change: Callable[[float], float] | None = None) -> None:
        self._base = base
        self._sampling = sampling
        self._change = change or (lambda logprob: logprob)

    async def __call__(self, path: str, body: dict[str, Any], adapter: Path | None) -> AsyncGenerator[bytes, None]:
        assert path == "/completions"
        assert adapter is not None
        assert body["return_token_ids"]
        assert body["logprobs"] == 0
        format = body.get("response_format")
        schema = None if format is None else format["json_schema"]["schema"]
        parameters = Parameters(
            body["max_tokens"],
            frozenset(body["stop_token_ids"]),
            body["temperature"],
            body["top_p"],
            make_mask=None if schema is None else partial(build_constraint, self._base, schema),
        )
        loaded = self._sampling.load(from_files({path.name: path.read_bytes() for path in adapter.iterdir()}))
        samples: list[Sample] = []
        self._sampling.sample(
            loaded,
            [body["prompt"]],
            [[body["seed"]]],
            [parameters],
            lambda: None,
            lambda *told: samples.append(told[2]),
        )
        (sample,) = samples
        choice = {
            "index": 0,
            "text": "",
            "token_ids": sample.token_ids,
            "logprobs": {"token_logprobs": [self._change(logprob) for logprob in sample.logprobs]},
            "finish_reason": "stop" if sample.has_ended else "length",
        }
        yield json.dumps({"choices": [choice]}).encode()
