"""What the API asks of whatever answers: a request, the pieces of its answers, and the engine between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from caesura.jobs import Artifact


@dataclass(frozen=True, slots=True)
class Asked:
    """What chats and completions have in common. The values are OpenAI's: checked, and with defaults filled in."""

    #: The base model's name in the settings.
    base: str
    #: The tuned model's weights; None: the base model alone.
    adapter: Artifact | None
    #: How many answers to the one prompt; their `index` is 0 to n - 1.
    n: int = field(default=1, kw_only=True)
    #: Tokens of each answer; None: as many as the context window leaves room for.
    max_tokens: int | None = field(default=None, kw_only=True)
    #: 0 takes the likeliest token, always.
    temperature: float = field(default=1.0, kw_only=True)
    top_p: float = field(default=1.0, kw_only=True)
    #: Subtracted from a token's logit for each time it came, and once if it came at all, in the answer so far.
    frequency_penalty: float = field(default=0.0, kw_only=True)
    presence_penalty: float = field(default=0.0, kw_only=True)
    #: Token id → what is added to its logit; -100 bans it, 100 forces it.
    logit_bias: dict[int, float] = field(default_factory=dict[int, float], kw_only=True)
    #: The draws are a function of the seed, the answer's index and the token's place; None: a random seed.
    seed: int | None = field(default=None, kw_only=True)
    #: None of them empty. An answer ends before the first of them that appears.
    stop: tuple[str, ...] = field(default=(), kw_only=True)
    #: How many likely tokens are told beside each token, 0 to 20; None: no log-probabilities at all.
    top_logprobs: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class ChatRequest(Asked):
    """Answers to one conversation."""

    messages: list[dict[str, Any]]
    #: As in Chat Completions: `{"type": "function", "function": {"name", "description", "parameters", "strict"}}`.
    tools: list[dict[str, Any]] | None = field(default=None, kw_only=True)
    #: `auto`: the model decides; `required`: it calls one of the tools; `("function", name)`: it calls that one.
    tool_choice: Literal["auto", "required"] | tuple[Literal["function"], str] = field(default="auto", kw_only=True)
    #: Whether an answer may hold more than one call.
    parallel_tool_calls: bool = field(default=True, kw_only=True)
    #: An answer's text is JSON of this schema, unless it is cut off; None: any text.
    json_schema: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class CompletionRequest(Asked):
    """Continuations of one text, or of the tokens that it is."""

    prompt: str | list[int]
    #: Each answer begins with the prompt, which then has log-probabilities too; `max_tokens` may be 0.
    echo: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the log of its probability, before temperature and penalties."""

    token: str
    #: None only for the first token of a prompt, which nothing precedes.
    logprob: float | None
    bytes: tuple[int, ...]
    #: The likeliest tokens in its place, the likeliest first.
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of an answer: whole characters, and nothing that a stop string could still take back."""

    text: str
    index: int = 0
    #: Of the tokens that came since the last piece, where they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An answer calls a function: its `call`-th call, from 0, begins. The calls of an answer come one after another."""

    call: int
    name: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """The next piece of the JSON text of a call's arguments."""

    call: int
    text: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last piece of an answer. `length`: it was cut off by `max_tokens` or by the context window."""

    finish_reason: Literal["stop", "length", "tool_calls"]
    #: The same in every answer to a request.
    prompt_tokens: int
    #: Every token of this answer that was sampled: the end token and those of a stop string are among them.
    completion_tokens: int
    index: int = 0


Piece = Text | ToolCall | ToolArguments | Finished


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Embeddings of texts, or of the tokens that they are."""

    inputs: list[str] | list[list[int]]
    #: The base model whose last hidden states are averaged; None: the embedding model of the settings.
    base: str | None = None
    #: The tuned model's weights beside that base.
    adapter: Artifact | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    #: One an input, of unit length; zeros for an input without tokens.
    vectors: list[list[float]]
    #: Of all inputs together, as far as the model looked at them.
    num_tokens: int


class Engine(Protocol):
    """Base models and adapters, ready to answer. Used from one event loop."""

    def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        """Yield the answers as they are made: pieces of all `n` of them in turn, and one `Finished` for each. The
        generator ends after the last of these.

        Nothing happens before the first piece is asked for. Closing the generator early (`contextlib.aclosing`)
        frees the engine's work at its next token, also while the request still waits for its place.

        Raises, before the first piece:
        - InvalidRequest with code `context_length_exceeded` and param `messages` or `prompt`: it leaves no room;
        - InvalidRequest with param `messages`: the base model's chat template does not take these messages;
        - InvalidRequest with param `model`: the base model cannot be loaded, or cannot take this adapter;
        - InvalidRequest with param `tools` or a path in it: the base's template knows no tools, or a function's
          parameters are no schema that can be held to;
        - InvalidRequest with param `logit_bias` or `prompt`: a token id is not one of the model's;
        - InvalidRequest with param `response_format`: the base model's answers cannot be held to a schema;
        - BlobDamaged: the adapter's stored files are not what was written.
        At any time:
        - InvalidRequest with param `response_format.json_schema.schema`: the schema says what cannot be held to, most
          often before the first piece; a large one may prove too large in the middle;
        - EngineUnavailable: the engine does not start, has just stopped, or is closed; trying again later may help;
        - CaesuraError: it failed in a way that nobody foresaw; its log says how.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """The inputs' embeddings.

        Raises:
        - InvalidRequest: no embedding model is configured, it cannot be loaded, or (with param `input`) an input is
          longer than the base's context window or holds a token id that is not the model's;
        - EngineUnavailable and CaesuraError: as in `generate`.
        """
        ...

    async def close(self) -> None:
        """End the engine: answers in the making end with EngineUnavailable. May be called twice."""
        ...
