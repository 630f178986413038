"""Texts → embeddings, by a model in the layout of sentence-transformers, or by any encoder of transformers."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers leave the types of what they return open)
from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils.hub import cached_file

from caesura.errors import InvalidRequest
from caesura.inference.engine import Embeddings
from caesura.inference.prompt import check_token_ids

logger = logging.getLogger(__name__)

#: Texts of one forward pass.
BATCH_SIZE = 16
#: Of a model without a number of positions: it would take a text of any length, and the memory for it.
MAX_TOKENS = 512
#: What a layout's `modules.json` may list, by the end of their types. Others would change the embedding.
_MODULES = ("Transformer", "Pooling", "Normalize")
#: Older layouts have a flag for each way of pooling.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class Embedder:
    """An embedding model in memory."""

    model: nn.Module
    tokenizer: Any
    pooling: Pooling
    #: Longer texts are cut.
    max_tokens: int

    def embed(self, inputs: Sequence[str] | Sequence[list[int]]) -> Embeddings:
        """The mean over the last hidden states of an input's tokens, or the first of them (`cls`)."""
        batches = [self._embed_batch(inputs[start : start + BATCH_SIZE]) for start in range(0, len(inputs), BATCH_SIZE)]
        vectors = [vector for vectors_BD, _ in batches for vector in vectors_BD.tolist()]
        return Embeddings(vectors, sum(num_tokens for _, num_tokens in batches))

    @torch.inference_mode()
    def _embed_batch(self, inputs: Sequence[str] | Sequence[list[int]]) -> tuple[Tensor, int]:
        """Shape [B, hidden size], and how many tokens were looked at."""
        device = next(self.model.parameters()).device
        encoding = self._encode(inputs).to(device)
        if encoding["input_ids"].shape[1] == 0:
            config: Any = self.model.config
            return torch.zeros(len(inputs), config.hidden_size), 0
        output: Any = self.model(**encoding)
        hidden_BTD: Tensor = output.last_hidden_state.float()
        mask_BT1 = encoding["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
        # Normalizing divides by the length of the text as well.
        pooled_BD = (hidden_BTD * mask_BT1).sum(1) if self.pooling == "mean" else hidden_BTD[:, 0]
        return nn.functional.normalize(pooled_BD, dim=-1), int(encoding["attention_mask"].sum())

    def _encode(self, inputs: Sequence[str] | Sequence[list[int]]) -> Any:
        cut = {"truncation": True, "max_length": self.max_tokens}
        if isinstance(inputs[0], str):
            return self.tokenizer(list(inputs), padding=True, padding_side="right", return_tensors="pt", **cut)
        model: Any = self.model
        token_ids: list[list[int]] = [list(given[: self.max_tokens]) for given in inputs if not isinstance(given, str)]
        for given in token_ids:
            check_token_ids(given, model.get_input_embeddings().num_embeddings, "input")
        return self.tokenizer.pad({"input_ids": token_ids}, padding_side="right", return_tensors="pt")


def load_embedder(path: str, device: torch.device) -> Embedder:
    """Load the embedding model at `path`, a folder or a hub id: only safetensors weights, and no code from the hub.

    Raises InvalidRequest when it cannot be loaded, or its layout asks for what is not done here.
    """
    began_s = time.monotonic()
    try:
        pooling = _read_pooling(path)
        model = cast(nn.Module, AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True))
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        max_tokens = _read_max_tokens(path, model, tokenizer)
    except (OSError, ValueError, ImportError) as error:
        logger.exception("the embedding model '%s' cannot be loaded", path)
        raise InvalidRequest(
            f"The embedding model cannot be loaded ({type(error).__name__}; the server's log says more). Check "
            "'embedding_model' in caesura.toml: a folder with safetensors weights, or a hub id within reach.",
            code="model_not_available",
        ) from error
    model.eval().to(device)
    logger.info("loaded the embedding model '%s' in %.1f s", path, time.monotonic() - began_s)
    return Embedder(model, tokenizer, pooling, max_tokens)


def _read_pooling(path: str) -> Pooling:
    """The layout's way of pooling; `mean` where nothing says another."""
    modules: Any = _read_json(path, "modules.json") or []
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    others = [kind for kind in kinds if kind not in _MODULES]
    match _pooling_modes(_read_json(path, "1_Pooling/config.json") or {}) + others:
        case [("mean" | "cls") as pooling]:
            return pooling
        case steps:
            raise InvalidRequest(
                f"The embedding model makes its embeddings by {' and '.join(steps)}; only mean and cls are done here. "
                "Choose another 'embedding_model' in caesura.toml.",
                code="model_not_available",
            )


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [named] if isinstance(named, str) else list(named)
    return [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]


def _read_max_tokens(path: str, model: nn.Module, tokenizer: Any) -> int:
    """As sentence-transformers has it: what its own file says, else the smaller of the tokenizer's and the model's."""
    config: Any = _read_json(path, "sentence_bert_config.json") or {}
    if config.get("max_seq_length") is not None:
        return int(config["max_seq_length"])
    return min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", MAX_TOKENS))


def _read_json(path: str, name: str) -> Any:
    """The file's value; None where the model has no such file."""
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_bytes())
