"""Base models as they are sampled from: many rows at once, each with its own adapter, a token at a time.

Training calls a base model as `transformers` has it. That is too slow here: of a decoding step more than half goes into
Python and into the unpacked matrices (docs/benchmarks.md). So the families that most models belong to are computed by
`fused.py` from their own weights; any other causal model by `plain.py`, through `transformers`. Both give what
`transformers.generate` gives, token by token (`tests/models/test_decoding.py`).
"""

from __future__ import annotations

from torch import nn

from caesura.models.decoding.decoder import Decoder, Rows
from caesura.models.decoding.fused import FusedDecoder
from caesura.models.decoding.layers import is_fusible
from caesura.models.decoding.plain import PlainDecoder

__all__ = ["Decoder", "Rows", "build_decoder"]


def build_decoder(model: nn.Module) -> Decoder:
    """The decoder of `model`, which it takes over: the model itself may not be called any more.

    Raises InvalidRequest when the model has no linear layers to adapt, or keeps more than keys and values of what came.
    """
    return FusedDecoder(model) if is_fusible(model) else PlainDecoder(model)
