"""What a training makes of a base: an adapter beside its weights, or other weights in their place."""

from __future__ import annotations

from collections.abc import Mapping

from caesura.jobs import FULL_WEIGHTS
from caesura.models import full, lora
from caesura.models.full import FullWeights
from caesura.models.lora import Adapter
from caesura.storage import Content

Tuned = Adapter | FullWeights


def to_files(tuned: Tuned, base_name: str) -> Mapping[str, Content]:
    """PEFT's two files of an adapter, which show `base_name` as the base; one file of safetensors of full weights."""
    return full.to_files(tuned) if isinstance(tuned, FullWeights) else lora.to_files(tuned, base_name)


def from_files(files: dict[str, bytes]) -> Tuned:
    """What `to_files` made."""
    return full.from_files(files) if FULL_WEIGHTS in files else lora.from_files(files)
