"""The models in memory: base models and the embedding model, each loaded once, and the tuned models used last."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch

from caesura.errors import InvalidRequest
from caesura.inference.embedder import Embedder, load_embedder
from caesura.inference.tools import ToolFormat, find_format
from caesura.jobs import Artifact
from caesura.models import full
from caesura.models.decoding import Decoder, build_decoder
from caesura.models.decoding.adapters import LoadedAdapter
from caesura.models.loading import Base, ChatTokenizer, choose_device, load_base, tool_template
from caesura.models.lora import from_files
from caesura.settings import Settings
from caesura.storage import Storage, get_files

logger = logging.getLogger(__name__)

#: Adapters in memory are bounded by this, those in use apart.
MAX_ADAPTER_BYTES = 2**30
#: Tuned models with weights of their own in memory, those in use apart: each takes what its base takes.
MAX_FULL_MODELS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A base model, or a tuned one with weights of its own in the place of its base's, ready to answer."""

    base: Base
    decoder: Decoder
    #: How it calls tools; None: it does not.
    tool_format: ToolFormat | None


class Library:
    """Used from one thread."""

    def __init__(self, settings: Settings, storage: Storage, max_adapter_bytes: int = MAX_ADAPTER_BYTES) -> None:
        self._settings = settings
        self._storage = storage
        self._max_adapter_bytes = max_adapter_bytes
        self._bases: dict[str, Loaded] = {}
        #: By the base's name and the artifact's prefix, which is written once; the one used last comes last.
        self._adapters: OrderedDict[tuple[str, str], LoadedAdapter] = OrderedDict()
        #: As the adapters.
        self._full_models: OrderedDict[tuple[str, str], Loaded] = OrderedDict()
        #: By the base's name, for it and the models of its kind: what is made of a tokenizer is made once.
        self._tokenizers: dict[str, ChatTokenizer] = {}
        self._embedder: Embedder | None = None

    def find(self, base: str, artifact: Artifact | None) -> tuple[Loaded, LoadedAdapter | None]:
        """What answers for the tuned model `artifact` of this base, and with which adapter; None: the base itself.

        Raises as `adapter`.
        """
        if artifact is None:
            return self.base(base), None
        if artifact.is_full:
            return self._full_model(base, artifact), None
        return self.base(base), self.adapter(base, artifact)

    def base(self, name: str) -> Loaded:
        """The base model. Raises InvalidRequest when it cannot be loaded."""
        if name not in self._bases:
            self._bases[name] = _make_ready(self._load(name))
        return self._bases[name]

    def adapter(self, base: str, artifact: Artifact) -> LoadedAdapter:
        """The adapter, for this base. It stays usable for whoever has it, also when it is dropped here.

        Raises as `base`, and BlobDamaged when the adapter's files are not what was written or do not fit the base.
        """
        key = (base, artifact.prefix)
        if key not in self._adapters:
            decoder = self.base(base).decoder
            self._adapters[key] = decoder.load(from_files(get_files(self._storage, artifact)))
        self._adapters.move_to_end(key)
        while len(self._adapters) > 1 and self._num_adapter_bytes() > self._max_adapter_bytes:
            self._adapters.popitem(last=False)
        return self._adapters[key]

    def embedder(self) -> Embedder:
        """The embedding model of the settings. Raises InvalidRequest when there is none, or it cannot be loaded."""
        if self._embedder is None:
            path = self._settings.embedding_model
            if path is None:
                raise InvalidRequest(
                    "No embedding model is configured. Set 'embedding_model' in caesura.toml to a folder or to an id "
                    "on the Hugging Face hub.",
                    code="model_not_available",
                )
            self._embedder = load_embedder(path, choose_device(self._settings.device))
        return self._embedder

    def _full_model(self, base: str, artifact: Artifact) -> Loaded:
        key = (base, artifact.prefix)
        if key not in self._full_models:
            weights = full.from_files(get_files(self._storage, artifact))
            while len(self._full_models) >= MAX_FULL_MODELS:  # before another is loaded beside them
                self._full_models.popitem(last=False)
            own = self._load(base)
            full.set_weights(own.model, weights)
            self._full_models[key] = _make_ready(own)
        self._full_models.move_to_end(key)
        return self._full_models[key]

    def _load(self, name: str) -> Base:
        settings = self._settings.bases().get(name)
        if settings is None:
            raise InvalidRequest(
                f"The base model '{name}' is not one of this server's. Add it under [models] in caesura.toml.",
                param="model",
                code="model_not_available",
            )
        began_s = time.monotonic()
        device = choose_device(self._settings.device)
        base = load_base(name, settings, _dtype(self._settings.dtype, device), device)
        logger.info("loaded the base model '%s' in %.1f s", name, time.monotonic() - began_s)
        return replace(base, tokenizer=self._tokenizers.setdefault(name, base.tokenizer))

    def _num_adapter_bytes(self) -> int:
        return sum(adapter.num_bytes for adapter in self._adapters.values())


def _make_ready(base: Base) -> Loaded:
    return Loaded(base, build_decoder(base.model), find_format(tool_template(base.tokenizer)))


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    """On a CPU float32 unless another is asked for: there what shares a batch changes an answer least."""
    if wanted == "auto":
        wanted = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, wanted)
