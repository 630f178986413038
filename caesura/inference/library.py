"""The models in memory: base models and the embedding model, each loaded once, and the adapters used last."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

import torch

from caesura.errors import InvalidRequest
from caesura.inference.embedder import Embedder, load_embedder
from caesura.jobs import Artifact
from caesura.models.loading import Base, choose_device, load_base
from caesura.models.lora import Adapter, Layers, add_lora, from_files, set_adapter
from caesura.settings import Settings
from caesura.storage import Storage, get_files

logger = logging.getLogger(__name__)

#: Adapters in memory are bounded by this, the one in use apart.
MAX_ADAPTER_BYTES = 256 * 2**20


class Library:
    """Used from one thread: a base model holds one adapter at a time."""

    def __init__(self, settings: Settings, storage: Storage, max_adapter_bytes: int = MAX_ADAPTER_BYTES) -> None:
        self._settings = settings
        self._storage = storage
        self._max_adapter_bytes = max_adapter_bytes
        self._bases: dict[str, tuple[Base, Layers]] = {}
        #: By the artifact's prefix, which is written once; the one used last comes last.
        self._adapters: OrderedDict[str, tuple[Adapter, int]] = OrderedDict()
        self._embedder: Embedder | None = None

    def use(self, base: str, adapter: Artifact | None) -> Base:
        """The base model with that adapter set, until the next call.

        Raises InvalidRequest when the base cannot be loaded, BlobDamaged when the adapter's files are not what
        was written or do not fit the base.
        """
        if base not in self._bases:
            self._bases[base] = self._load(base)
        model, layers = self._bases[base]
        set_adapter(layers, None if adapter is None else self._read(adapter))
        return model

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

    def _load(self, name: str) -> tuple[Base, Layers]:
        settings = self._settings.bases().get(name)
        if settings is None:
            raise InvalidRequest(
                f"The base model '{name}' is not one of this server's. Add it under [models] in caesura.toml.",
                param="model",
                code="model_not_available",
            )
        began_s = time.monotonic()
        device = choose_device(self._settings.device)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        base = load_base(name, settings, dtype, device)
        layers = add_lora(base.model)
        logger.info("loaded the base model '%s' in %.1f s", name, time.monotonic() - began_s)
        return base, layers

    def _read(self, artifact: Artifact) -> Adapter:
        if artifact.prefix not in self._adapters:
            files = get_files(self._storage, artifact)
            num_bytes = sum(len(data) for data in files.values())
            self._adapters[artifact.prefix] = from_files(files), num_bytes
        self._adapters.move_to_end(artifact.prefix)
        while len(self._adapters) > 1 and self._num_adapter_bytes() > self._max_adapter_bytes:
            self._adapters.popitem(last=False)
        return self._adapters[artifact.prefix][0]

    def _num_adapter_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self._adapters.values())
