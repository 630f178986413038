"""`/embeddings`: from base models, tuned models, and the embedding model of the settings."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from caesura.api.admission import PlacesDependency
from caesura.api.asked import find_answering, json_answer
from caesura.api.leaving import unless_client_leaves
from caesura.api.route import Route
from caesura.api.state import Server, ServerDependency
from caesura.errors import InvalidRequest
from caesura.inference.engine import Embeddings, EmbedRequest
from caesura.jobs import Artifact
from caesura.schema.embeddings import CreateEmbeddings, Embedding, EmbeddingList, EmbeddingUsage
from caesura.settings import EMBEDDED_BASE

router = APIRouter(prefix="/v1/embeddings", route_class=Route)

#: They mean the embedding model of the settings; without one, the embedded base, as OpenAI's other names do.
OPENAI_EMBEDDING_MODELS = frozenset({"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"})


@router.post("", response_model=None)
async def create(
    body: CreateEmbeddings, request: Request, server: ServerDependency, places: PlacesDependency
) -> Response:
    places.take()
    embedding = await run_in_threadpool(_find_embedding, server, body.model)
    asked = EmbedRequest(_inputs_of(body), embedding.base, embedding.adapter)
    embeddings = await unless_client_leaves(request, server.engine.embed(asked))
    return await run_in_threadpool(_to_answer, body, embedding.name, embeddings)


@dataclass(frozen=True, slots=True)
class _Embedding:
    """What embeds: a base model with or without an adapter, or (`base` is None) the embedding model of the settings."""

    name: str
    base: str | None = None
    adapter: Artifact | None = None


def _find_embedding(server: Server, name: str) -> _Embedding:
    """Raises NotFound, model_not_found, where nothing of that name embeds."""
    own = server.settings.embedding_model
    if server.resolve_model(name) is None:
        if own is not None and (name in OPENAI_EMBEDDING_MODELS or name in (own, _name_of(own))):
            return _Embedding(_name_of(own))
        if name in OPENAI_EMBEDDING_MODELS:
            name = EMBEDDED_BASE
    answering = find_answering(server, name)
    return _Embedding(answering.name, answering.base, answering.adapter)


def _name_of(embedding_model: str) -> str:
    """The hub's id; of a folder of this machine its own name, without the way to it."""
    return Path(embedding_model).name if Path(embedding_model).exists() else embedding_model


def _inputs_of(body: CreateEmbeddings) -> list[str] | list[list[int]]:
    match body.input:
        case str(text):
            return [text]
        case [int(), *_] as tokens:
            return [tokens]
        case inputs:
            return cast(list[str] | list[list[int]], inputs)


def _to_answer(body: CreateEmbeddings, name: str, embeddings: Embeddings) -> Response:
    vectors = embeddings.vectors
    if body.dimensions is not None:
        vectors = _shorten(vectors, body.dimensions, name)
    write = _to_base64 if body.encoding_format == "base64" else list[float]
    data = [Embedding(index=index, embedding=write(vector)) for index, vector in enumerate(vectors)]
    usage = EmbeddingUsage(prompt_tokens=embeddings.num_tokens, total_tokens=embeddings.num_tokens)
    return json_answer(EmbeddingList(data=data, model=name, usage=usage))


def _shorten(vectors: Sequence[Sequence[float]], dimensions: int, name: str) -> list[list[float]]:
    """The first `dimensions` numbers of each, of unit length again; zeros stay zeros."""
    size = len(vectors[0])
    if dimensions > size:
        raise InvalidRequest(
            f"Invalid 'dimensions': integer above maximum value. Expected a value <= {size}, the size of the "
            f"embeddings of '{name}', but got {dimensions} instead.",
            param="dimensions",
            code="integer_above_max_value",
        )
    shortened: list[list[float]] = []
    for vector in vectors:
        length = math.hypot(*vector[:dimensions]) or 1.0
        shortened.append([number / length for number in vector[:dimensions]])
    return shortened


def _to_base64(vector: Sequence[float]) -> str:
    """Little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
