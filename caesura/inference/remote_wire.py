"""The wire of a remote engine, OpenAI's as vLLM speaks it: requests to bodies, a stream's bytes to pieces. No I/O."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from caesura.errors import EngineUnavailable
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
from caesura.inference.remote_errors import AnyRequest, find_error, nonsense_is_unavailable, to_error

#: OpenAI takes 0, which leaves the likeliest token alone; vLLM refuses it, and always leaves that one.
MIN_TOP_P = 1e-6


def to_path(request: AnyRequest) -> str:
    match request:
        case ChatRequest():
            return "/chat/completions"
        case CompletionRequest():
            return "/completions"
        case EmbedRequest():
            return "/embeddings"


def to_body(request: AnyRequest, model: str) -> dict[str, Any]:
    """What is posted to the path of `request`; `model` is the model's name there."""
    match request:
        case ChatRequest():
            own = _chat_body(request)
        case CompletionRequest():
            own = {"prompt": request.prompt, "echo": request.echo or None, "logprobs": request.top_logprobs}
        case EmbedRequest():
            return {"model": model, "input": request.inputs, "encoding_format": "float"}
    # An answer's own number of tokens is told by vLLM's continuous_usage_stats; other servers may refuse to hear of it.
    tell_each = {"continuous_usage_stats": True} if request.n > 1 else {}
    common = {
        "model": model,
        "n": request.n,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": max(request.top_p, MIN_TOP_P),
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in request.logit_bias.items()} or None,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "stream": True,
        "stream_options": {"include_usage": True} | tell_each,
    }
    return {name: value for name, value in (common | own).items() if value is not None}


def _chat_body(request: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": request.messages}
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.tools:
        choice = request.tool_choice
        named = {"type": "function", "function": {"name": choice[1]}} if isinstance(choice, tuple) else choice
        body |= {"tools": request.tools, "tool_choice": named, "parallel_tool_calls": request.parallel_tool_calls}
    if request.json_schema is not None:
        body["response_format"] = schema_format(request.json_schema)
    return body


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The `response_format` of an answer that is held to the schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _Call(BaseModel):
    index: int
    function: _Function = _Function()


class _Delta(BaseModel):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Logprob] = Field(default_factory=list["_Logprob"])


class _Logprobs(BaseModel):
    """Those of a chat, and those of a completion (`tokens` and what goes with them)."""

    content: list[_Logprob] | None = None
    tokens: list[str] = Field(default_factory=list[str])
    token_logprobs: list[float | None] = Field(default_factory=list[float | None])
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(BaseModel):
    index: int
    delta: _Delta = _Delta()
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = Field(default_factory=list[_Choice])
    usage: _Usage | None = None


class Answers:
    """The answers to one request in the making: the bytes of a stream of server-sent events in, pieces out.

    `Finished` is held back until the usage is known, which comes after all answers.
    """

    def __init__(self, request: ChatRequest | CompletionRequest) -> None:
        self._request = request
        #: The beginning of a line whose end has not come yet.
        self._rest = b""
        #: `[DONE]` came: nothing follows.
        self.is_over = False
        #: Calls that each answer has begun, by its index.
        self._num_calls = dict.fromkeys(range(request.n), 0)
        self._finish_reasons: dict[int, Literal["stop", "length", "tool_calls"]] = {}
        self._usage: _Usage | None = None
        #: Tokens of each answer by its index, where its chunks told them.
        self._num_tokens: dict[int, int] = {}

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that the next bytes of the stream complete.

        Raises InvalidRequest or EngineUnavailable where an event tells an error, and EngineUnavailable for what is no
        chunk of such a stream.
        """
        # Only LF and CRLF end a line: JSON may hold other characters (U+2028 among them) that `splitlines` would cut.
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [piece for line in lines if line.startswith(b"data:") for piece in self._read(line[5:].strip())]

    def finish(self) -> list[Finished]:
        """The last pieces, when the stream has ended. Raises EngineUnavailable where something is missing.

        A server that does not tell the tokens of each of several answers has those of all counted for the last.
        """
        if self._finish_reasons.keys() != set(range(self._request.n)):
            raise EngineUnavailable("The server at 'engine_url' broke off its answer. Please try again.")
        if self._usage is None:
            raise EngineUnavailable(
                "The server at 'engine_url' does not tell how many tokens it used: it must heed "
                "'stream_options.include_usage'."
            )
        *others, last = range(self._request.n)
        counts = {index: self._num_tokens.get(index, 0) for index in others}
        counts[last] = max(0, self._usage.completion_tokens - sum(counts.values()))
        if self._request.max_tokens == 0:  # vLLM samples one token where only an echo was asked for, and counts it
            counts = dict.fromkeys(counts, 0)
        prompt_tokens = self._usage.prompt_tokens
        return [Finished(self._finish_reasons[index], prompt_tokens, counts[index], index) for index in counts]

    def _read(self, event: bytes) -> list[Piece]:
        if self.is_over or event == b"[DONE]":
            self.is_over = True
            return []
        with nonsense_is_unavailable():
            value: Any = json.loads(event)
            refusal = find_error(value)
            if refusal is not None:
                raise to_error(refusal, self._request)
            chunk = _Chunk.model_validate(value)
            self._note_usage(chunk)
            return [piece for choice in chunk.choices for piece in self._pieces(choice)]

    def _note_usage(self, chunk: _Chunk) -> None:
        """A chunk's usage is that of all answers, or, beside one of several, of that one so far."""
        if chunk.usage is None:
            return
        if self._request.n > 1 and chunk.choices:
            self._num_tokens[chunk.choices[0].index] = chunk.usage.completion_tokens
        else:
            self._usage = chunk.usage

    def _pieces(self, choice: _Choice) -> list[Piece]:
        index = choice.index
        if index not in self._num_calls:
            raise ValueError(f"there is no answer {index}")
        text = choice.delta.content or choice.text or ""
        logprobs = self._logprobs(choice.logprobs)
        pieces: list[Piece] = [Text(text, index, logprobs)] if text or logprobs else []
        for call in choice.delta.tool_calls or []:
            # The name counts once: some versions of vLLM repeat it beside each piece of the arguments.
            if call.index == self._num_calls[index]:
                if call.function.name is None:
                    raise ValueError("the first piece of a call has no name")
                self._num_calls[index] += 1
                pieces.append(ToolCall(call.index, call.function.name, index))
            elif not 0 <= call.index < self._num_calls[index]:
                raise ValueError(f"the call {call.index} comes after {self._num_calls[index]} calls")
            if call.function.arguments:
                pieces.append(ToolArguments(call.index, call.function.arguments, index))
        if choice.finish_reason is not None:
            # Where a request names the function, vLLM ends its call with `stop`, as OpenAI does.
            has_called = self._num_calls[index] > 0 and choice.finish_reason == "stop"
            self._finish_reasons[index] = "tool_calls" if has_called else choice.finish_reason
        return pieces

    def _logprobs(self, logprobs: _Logprobs | None) -> tuple[TokenLogprob, ...]:
        num_top = self._request.top_logprobs
        if logprobs is None or num_top is None:
            return ()
        if logprobs.content is not None:
            return tuple(_chat_logprob(token, num_top) for token in logprobs.content)
        tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
        return tuple(
            TokenLogprob(token, logprob, tuple(token.encode()), _likeliest(top or {}, num_top))
            for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
        )


def _chat_logprob(told: _Logprob, num_top: int) -> TokenLogprob:
    data = tuple(told.token.encode()) if told.bytes is None else tuple(told.bytes)
    top = tuple(_chat_logprob(token, 0) for token in told.top_logprobs[:num_top])
    return TokenLogprob(told.token, told.logprob, data, top)


def _likeliest(top: dict[str, float], num_top: int) -> tuple[TokenLogprob, ...]:
    """vLLM lists the sampled token too, which may be one too many."""
    ranked = sorted(top.items(), key=lambda pair: -pair[1])[:num_top]
    return tuple(TokenLogprob(token, logprob, tuple(token.encode())) for token, logprob in ranked)


class _Embedding(BaseModel):
    index: int
    embedding: list[float]


class _EmbeddingsReply(BaseModel):
    data: list[_Embedding]
    usage: _Usage


def read_embeddings(reply: bytes, num_inputs: int) -> Embeddings:
    """Of unit length, in the order of the inputs. Raises EngineUnavailable for what is no such reply."""
    with nonsense_is_unavailable():
        told = _EmbeddingsReply.model_validate_json(reply)
        vectors = {item.index: _normalize(item.embedding) for item in told.data}
        if vectors.keys() != set(range(num_inputs)):
            raise ValueError(f"{num_inputs} inputs have embeddings for {sorted(vectors)}")
    return Embeddings([vectors[index] for index in range(num_inputs)], told.usage.prompt_tokens)


def _normalize(vector: list[float]) -> list[float]:
    length = sum(number * number for number in vector) ** 0.5
    return [number / length for number in vector] if length else vector
