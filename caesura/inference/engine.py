"""What the API asks of whatever answers chat: a request, the pieces of its answer, and the engine between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from caesura.jobs import Artifact


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One answer to one conversation. The values are those of OpenAI's API: checked, and with defaults filled in."""

    #: The base model's name in the settings.
    base: str
    #: The tuned model's weights; None: the base model alone.
    adapter: Artifact | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    #: At least 1; None: as many as the context window leaves room for.
    max_tokens: int | None = None
    #: 0 takes the likeliest token, always.
    temperature: float = 1.0
    top_p: float = 1.0
    #: The answer is a function of the request and the seed; None: a random seed.
    seed: int | None = None
    #: None of them empty. The answer ends before the first of them that appears.
    stop: tuple[str, ...] = ()
    #: The answer is JSON of this schema, unless it is cut off; None: any text.
    json_schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer: whole characters, and nothing that a stop string could still take back."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last piece. `length`: the answer was cut off by `max_tokens` or by the context window."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    #: Every token that was sampled: the end token and those of a stop string are among them.
    completion_tokens: int


Piece = Text | Finished


class Engine(Protocol):
    """Base models and adapters, ready to answer. Used from one event loop."""

    def chat(self, request: ChatRequest) -> AsyncGenerator[Piece, None]:
        """Yield the answer as it is made: any number of `Text`, then one `Finished`.

        Nothing happens before the first piece is asked for. Closing the generator early (`contextlib.aclosing`)
        frees the engine's work at its next token, also while the request still waits for its turn.

        Raises, before the first piece:
        - InvalidRequest with code `context_length_exceeded` and param `messages`: the prompt leaves no room to answer;
        - InvalidRequest with param `messages`: the base model's chat template does not take these messages;
        - InvalidRequest with param `model`: the base model cannot be loaded;
        - InvalidRequest with param `response_format`: the base model's answers cannot be held to a schema;
        - BlobDamaged: the adapter's stored files are not what was written.
        At any time:
        - InvalidRequest with param `response_format.json_schema.schema`: the schema says what cannot be held to, most
          often before the first piece; a large one may prove too large in the middle;
        - EngineUnavailable: the engine does not start, has just stopped, or is closed; trying again later may help;
        - CaesuraError: it failed in a way that nobody foresaw; its log says how.
        """
        ...

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """The texts' embeddings, of unit length, by the embedding model of the settings; zeros for one without tokens.

        Raises:
        - InvalidRequest: no embedding model is configured, or it cannot be loaded;
        - EngineUnavailable and CaesuraError: as in `chat`.
        """
        ...

    async def close(self) -> None:
        """End the engine: answers in the making end with EngineUnavailable. May be called twice."""
        ...
