from __future__ import annotations

from typing import Any

import pytest
import torch

from caesura.errors import InvalidRequest
from caesura.models.lora import Adapter, name_A, name_B
from caesura.training.adapters import ResolvedAdapter, resolve_adapter

LAYERS = ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj"]


def resolve(asked: dict[str, Any], defaults: dict[str, Any] | None = None, start: Adapter | None = None) -> Any:
    return resolve_adapter(asked, defaults or {}, start, lambda: LAYERS)


def tuned(rank: int = 4, alpha: float = 12.0, layers: list[str] = LAYERS, dropout: float = 0.0) -> Adapter:
    weights = {name_A(layer): torch.ones(rank, 3) for layer in layers}
    return Adapter(rank, alpha, weights | {name_B(layer): torch.ones(2, rank) for layer in layers}, dropout)


def test_who_says_nothing_has_rank_16_and_alpha_32_on_every_linear_layer() -> None:
    assert resolve({}) == ResolvedAdapter("lora", 16, 32.0, 0.0, "all-linear", 0)


def test_alpha_is_twice_the_rank_where_it_is_not_given() -> None:
    assert resolve({"rank": 3}).lora_alpha == 6.0
    assert resolve({"rank": 3, "alpha": 5}).lora_alpha == 5.0


def test_a_job_wins_over_the_settings_of_its_base_key_by_key() -> None:
    defaults = {"type": "lora", "rank": 8, "alpha": 4.0, "dropout": 0.1, "target_modules": ["q_proj"]}
    asked = {"rank": 2, "target_modules": ["v_proj"]}

    assert resolve(asked, defaults) == ResolvedAdapter("lora", 2, 4.0, 0.1, ["v_proj"], 0)
    assert resolve({}, defaults) == ResolvedAdapter("lora", 8, 4.0, 0.1, ["q_proj"], 0)


def test_a_layer_that_is_not_there_is_refused_whoever_asked_for_it() -> None:
    for given in (({"target_modules": ["k_proj"]},), ({}, {"target_modules": ["k_proj"]})):
        with pytest.raises(InvalidRequest, match="'k_proj'"):
            resolve(*given)
    with pytest.raises(InvalidRequest, match="'k_proj'"):
        resolve({"target_modules": ["k_proj"]}, start=tuned())


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"rank": 4},
        {"rank": 4, "alpha": 12, "target_modules": "all-linear"},
        {"target_modules": ["v_proj", "q_proj"]},
        {"dropout": 0.5},
    ],
)
def test_a_tuned_model_is_trained_on_where_nothing_else_is_asked_for(asked: dict[str, Any]) -> None:
    resolved = resolve(asked, {"rank": 8, "dropout": 0.2, "target_modules": ["q_proj"]}, tuned(dropout=0.1))

    assert (resolved.lora_rank, resolved.lora_alpha, resolved.frozen_rank) == (4, 12.0, 0)
    assert resolved.lora_dropout == asked.get("dropout", 0.1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"rank": 2}, ResolvedAdapter("lora", 2, 4.0, 0.0, "all-linear", 4)),
        ({"alpha": 8}, ResolvedAdapter("lora", 4, 8.0, 0.0, "all-linear", 4)),
        ({"target_modules": ["q_proj"]}, ResolvedAdapter("lora", 4, 12.0, 0.0, ["q_proj"], 4)),
    ],
)
def test_a_tuned_model_is_kept_beside_an_adapter_of_another_kind(
    asked: dict[str, Any], expected: ResolvedAdapter
) -> None:
    assert resolve(asked, {}, tuned()) == expected


def test_what_is_not_asked_for_is_as_the_tuned_model_has_it() -> None:
    start = tuned(layers=["0.q_proj", "1.q_proj"])

    assert resolve({}, {}, start).target_modules == ["q_proj"]
    assert resolve({"rank": 2}, {}, start).target_modules == ["q_proj"]
    assert resolve({"target_modules": "all-linear"}, {}, start).frozen_rank == 4
