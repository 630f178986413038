"""A request for embeddings → what computes them: the embedding model of the settings, or a base model itself."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from caesura.errors import InvalidRequest
from caesura.inference.engine import Embeddings, EmbedRequest
from caesura.inference.library import Library, Loaded
from caesura.inference.prompt import check_token_ids
from caesura.models.decoding.adapters import LoadedAdapter


def prepare_embeddings(library: Library, request: EmbedRequest) -> Callable[[], Embeddings]:
    """Load what the request needs; what is returned computes. Raises what `Engine.embed` raises."""
    if request.base is None:
        embedder = library.embedder()
        return lambda: embedder.embed(request.inputs)
    loaded, adapter = library.find(request.base, request.adapter)
    inputs = [_encode(loaded, given) for given in request.inputs]
    return lambda: _embed(loaded, inputs, adapter)


def _encode(loaded: Loaded, given: str | list[int]) -> list[int]:
    tokenizer: Any = loaded.base.tokenizer
    if isinstance(given, str):
        token_ids: list[int] = tokenizer(given, verbose=False)["input_ids"]
    else:
        check_token_ids(given, loaded.decoder.vocab_size, "input")
        token_ids = given
    if len(token_ids) > loaded.base.context_window:
        raise InvalidRequest(
            f"This model's maximum context length is {loaded.base.context_window} tokens, however you requested "
            f"{len(token_ids)} tokens. Please reduce the length of the input.",
            param="input",
            code="context_length_exceeded",
        )
    return token_ids


def _embed(loaded: Loaded, inputs: Sequence[list[int]], adapter: LoadedAdapter | None) -> Embeddings:
    """The mean over the last hidden states of an input's tokens, one input after the other."""
    means = [_mean(loaded, token_ids, adapter) for token_ids in inputs]
    return Embeddings([mean_C.tolist() for mean_C in means], sum(map(len, inputs)))


def _mean(loaded: Loaded, token_ids: list[int], adapter: LoadedAdapter | None) -> Tensor:
    if not token_ids:
        return torch.zeros(loaded.decoder.width)
    hidden_TC = loaded.decoder.hidden_states(token_ids, adapter)
    return torch.nn.functional.normalize(hidden_TC.mean(0), dim=0)
