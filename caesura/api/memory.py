"""Whether a job can fit into this machine's memory at all: asked before it is made."""

from __future__ import annotations

from caesura.errors import InvalidRequest
from caesura.schema.adapters import FULL
from caesura.settings import Settings
from caesura.training.footprint import (
    TOLERANCE,
    estimate_bytes,
    guess_dtype,
    memory_bytes,
    read_shape,
    trains_on_cpu,
)
from caesura.training.hyperparameters import MICRO_BATCH_TOKENS

_GIB = 2**30


def check_memory(settings: Settings, base: str, method: str, adapter_type: str = "lora") -> None:
    """Raises InvalidRequest where a job on the base needs more than there is even if the estimate is as much too high
    as it ever was. Where jobs may run on another machine or on a GPU, nothing is known and nothing refused."""
    available = memory_bytes()
    if settings.database_url is not None or not trains_on_cpu(settings.device) or available is None:
        return
    shape = read_shape(settings.bases()[base].path)
    if shape is None:
        return
    # Reinforcement samples from a second copy, unless another server samples for it.
    num_copies = 2 if method == "reinforcement" and settings.sampling == "local" else 1
    micro_batch_tokens = settings.micro_batch_tokens or MICRO_BATCH_TOKENS["cpu"]
    dtype = guess_dtype(settings.dtype)
    is_full = adapter_type == FULL
    needed = estimate_bytes(shape, dtype, micro_batch_tokens, num_copies, is_full=is_full)
    if needed * (1 - TOLERANCE) <= available:
        return
    trained, remedy = f"'{base}'", "Name"
    if is_full:
        trained, remedy = f"all weights of {trained}", "Train an adapter (adapter.type 'lora'), name"
    raise InvalidRequest(
        f"Training {trained} needs about {needed / _GIB:.1f} GiB of memory ({shape.num_parameters / 1e9:.2f} billion "
        f"parameters in {dtype}, passes of {micro_batch_tokens} tokens), and this machine has "
        f"{available / _GIB:.1f} GiB. {remedy} a smaller base, lower the setting micro_batch_tokens, or use a machine "
        "with more memory.",
        param="model",
        code="out_of_memory",
    )
