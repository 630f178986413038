"""Which adapter a job trains: what it asks for, its base's settings, and the tuned model that it goes on from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caesura.models.full import FullWeights
from caesura.models.lora import Adapter
from caesura.models.targets import match_targets, name_targets
from caesura.models.tuned import Tuned
from caesura.schema.adapters import ALL_LINEAR, FULL, choose_type
from caesura.training.hyperparameters import LORA_RANK

#: Where alpha is not given; what the adapter adds is scaled by alpha / rank.
ALPHA_PER_RANK = 2.0
LORA_ALPHA = ALPHA_PER_RANK * LORA_RANK


@dataclass(frozen=True, slots=True)
class ResolvedAdapter:
    """The part of a plan that says what is trained; of the type `full` it has no rank."""

    adapter_type: str
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | list[str]
    #: Of the adapter that is kept beside the one that is trained; 0: none is.
    frozen_rank: int


def resolve_adapter(
    asked: Mapping[str, Any],
    defaults: Mapping[str, Any],
    start: Tuned | None,
    list_layers: Callable[[], list[str]],
) -> ResolvedAdapter:
    """`asked` wins over `defaults`, key by key; but what is not asked for stays as the tuned model `start` has it.

    A `start` of the same rank, alpha and layers is trained on; any other stays as it is, beside a new adapter.
    `list_layers` gives the names of the layers that there are. Raises InvalidRequest as `match_targets`.
    """
    given = {**defaults, **asked}
    kind = choose_type(asked, defaults, None if start is None else isinstance(start, FullWeights))
    if kind == FULL:
        return ResolvedAdapter(kind, 0, 0.0, 0.0, ALL_LINEAR, 0)
    assert not isinstance(start, FullWeights)  # refused when the job was created
    if start is not None:
        return _beside(start, asked, kind, list_layers())
    rank: int = given.get("rank", LORA_RANK)
    targets: str | list[str] = given.get("target_modules", ALL_LINEAR)
    if targets != ALL_LINEAR:
        match_targets(list_layers(), targets)
    alpha = float(given.get("alpha", ALPHA_PER_RANK * rank))
    return ResolvedAdapter(kind, rank, alpha, float(given.get("dropout", 0.0)), targets, 0)


def _beside(start: Adapter, asked: Mapping[str, Any], kind: str, layers: list[str]) -> ResolvedAdapter:
    rank: int = asked.get("rank", start.rank)
    alpha = float(asked.get("alpha", start.alpha if rank == start.rank else ALPHA_PER_RANK * rank))
    targets: str | list[str] = asked.get("target_modules") or name_targets(start.modules, layers)
    are_same_layers = set(match_targets(layers, targets)) == set(start.modules)
    goes_on = (rank, alpha) == (start.rank, start.alpha) and are_same_layers
    dropout = float(asked.get("dropout", start.dropout))
    return ResolvedAdapter(kind, rank, alpha, dropout, targets, 0 if goes_on else start.rank)
