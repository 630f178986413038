"""How much memory a job will need, from the files of its base model alone: asked by the server, which has no torch.

Not covered: GPUs, attention matrices (rows up to 512 tokens on a CPU have them), and what models have in which tokens
choose among experts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from caesura.training.hyperparameters import LORA_RANK

#: A worker that has imported torch and transformers, before it has loaded anything; its threads and buffers.
PROCESS_BYTES = 500 * 2**20
#: Of an adapter, in which every weight has a gradient and two moments beside it, all of 4 bytes.
BYTES_PER_ADAPTER_WEIGHT = 16
#: Of a weight of the base that is trained: itself, its gradient and two moments in 4 bytes each; and while a training
#: state is saved, copies of all but the gradient.
BYTES_PER_TRAINED_WEIGHT, BYTES_PER_SAVED_WEIGHT = 16, 12
#: What the backward pass keeps of a token and a layer, in the compute type: so many times the hidden size (inputs of
#: norms, of attention and of the MLP; queries, keys and values) and the MLP's size; in 4 bytes what norms compute in.
NUM_HIDDEN, NUM_INNER, BYTES_OF_NORMS = 10, 4, 16
#: Logits as the model makes them, in 4 bytes, their softmax and their gradients.
NUM_LOGITS, BYTES_OF_LOGITS = 2, 12
#: Measured workers needed within this share of the estimate, either way (tests/training/test_footprint.py).
TOLERANCE = 0.3
#: Longer headers are no headers (the format's own limit).
MAX_HEADER_BYTES = 100_000_000
_ITEM_SIZES = {"float32": 4, "bfloat16": 2}
_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MEMORY, _PROCESSORS, _GPUS = Path("/proc/meminfo"), Path("/proc/cpuinfo"), Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What the memory that a base model needs depends on; a size that its files do not tell is 0."""

    num_parameters: int
    #: Inputs and outputs of the linear layers, added up.
    num_adapted: int
    num_layers: int
    hidden_size: int
    inner_size: int
    vocabulary_size: int


def read_shape(path: str) -> BaseShape | None:
    """Of the base in this folder, or of this id on the hub as it lies in the cache; None where there are no weights.

    Reads the headers of safetensors files (https://huggingface.co/docs/safetensors): a length of 8 bytes, then JSON.
    """
    folder = _find(path)
    try:
        shapes = dict(shape for file in sorted(folder.glob("*.safetensors")) for shape in _read_shapes(file))
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the worker says what is wrong with it
    if not shapes:
        return None
    config = config.get("text_config") or config
    adapted = (
        sum(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in _NOT_ADAPTED)
    )
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    return BaseShape(
        sum(math.prod(shape) for shape in shapes.values()), sum(adapted), *(config.get(name) or 0 for name in names)
    )


def estimate_bytes(
    shape: BaseShape, dtype: str, micro_batch_tokens: int, num_copies: int = 1, *, is_full: bool = False
) -> int:
    """The most that a worker needs at a time: `num_copies` of the base, an adapter with its optimizer, and what is kept
    of a micro-batch for its backward pass, if all its tokens are learned. `is_full`: all weights are trained, and no
    adapter.

    What is kept follows Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, for layers whose own weights need no
    gradient and have no dropout; its factors are those of Llama's layers.
    """
    size = _ITEM_SIZES[dtype]
    weights = num_copies * shape.num_parameters * size
    trained = LORA_RANK * shape.num_adapted * BYTES_PER_ADAPTER_WEIGHT
    if is_full:
        held = size if dtype == "float32" else 0  # by the model itself
        trained = shape.num_parameters * (BYTES_PER_TRAINED_WEIGHT - held + BYTES_PER_SAVED_WEIGHT)
    kept = size * (NUM_HIDDEN * shape.hidden_size + NUM_INNER * shape.inner_size) + BYTES_OF_NORMS * shape.hidden_size
    logits = shape.vocabulary_size * (BYTES_OF_LOGITS + NUM_LOGITS * size)
    return PROCESS_BYTES + weights + trained + micro_batch_tokens * (shape.num_layers * kept + logits)


def memory_bytes() -> int | None:
    """What this machine has, or this container may take; None where that is not known."""
    found: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        found.append(int(lines["MemTotal"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        return None
    for path in _LIMITS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue  # there is none, or it is "max"
    return min(found)


def guess_dtype(wanted: str) -> str:
    """The type that `auto` will come to here; the smaller one where that is not known."""
    if wanted != "auto":
        return wanted
    try:
        return "bfloat16" if "avx512_bf16" in _PROCESSORS.read_text() else "float32"
    except OSError:
        return "bfloat16"


def trains_on_cpu(device: str) -> bool:
    """As far as can be told without asking torch."""
    return device == "cpu" or (device == "auto" and not _GPUS.exists())


def _find(path: str) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cached = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{path.replace('/', '--')}"
    try:
        return cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
    except OSError:
        return folder


def _read_shapes(file: Path) -> Iterator[tuple[str, Sequence[int]]]:
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header: Any = json.loads(content.read(min(length, MAX_HEADER_BYTES)))
    if not isinstance(header, dict):
        raise ValueError("no header")
    for name, tensor in cast(dict[str, Any], header).items():
        if name != "__metadata__":
            yield name, tensor["shape"]
