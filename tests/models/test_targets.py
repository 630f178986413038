from __future__ import annotations

import pytest

from caesura.errors import InvalidRequest
from caesura.models.targets import match_targets, name_targets

LAYERS = [f"model.layers.{index}.{part}" for index in (0, 1) for part in ("attn.q_proj", "attn.v_proj", "mlp.up_proj")]


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        ("all-linear", LAYERS),
        (["q_proj"], [LAYERS[0], LAYERS[3]]),
        (["up_proj", "q_proj"], [LAYERS[0], LAYERS[2], LAYERS[3], LAYERS[5]]),
        (["1.attn.v_proj"], [LAYERS[4]]),
        ([LAYERS[2]], [LAYERS[2]]),
    ],
)
def test_a_target_is_the_end_of_a_name_and_all_linear_is_every_layer(
    targets: str | list[str], chosen: list[str]
) -> None:
    assert match_targets(LAYERS, targets) == chosen
    assert match_targets(LAYERS, name_targets(chosen, LAYERS)) == chosen


def test_the_names_of_layers_are_as_short_as_they_may_be() -> None:
    assert name_targets(LAYERS, LAYERS) == "all-linear"
    assert name_targets([LAYERS[3], LAYERS[0]], LAYERS) == ["q_proj"]
    assert name_targets([LAYERS[3]], LAYERS) == [LAYERS[3]]


@pytest.mark.parametrize("target", ["proj", "k_proj", "layers.0", "attn.up_proj"])
def test_a_target_that_no_layer_is_called_is_refused_by_its_name_beside_those_there_are(target: str) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"called '{target}'. There are: 'q_proj', 'up_proj', 'v_proj'"
    ) as refused:
        match_targets(LAYERS, ["q_proj", target])

    assert (refused.value.param, refused.value.code) == ("adapter.target_modules", "invalid_value")
