"""A base in 4 bits. What is computed by it needs a GPU: here it is only loaded, where bitsandbytes is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caesura.errors import InvalidRequest
from caesura.models import loading, qlora
from caesura.models.decoding import build_decoder
from caesura.models.decoding.plain import PlainDecoder
from caesura.models.loading import load_base, load_quantized_base
from caesura.models.lora import add_lora, find_linears, fresh_adapter, in_out_features, set_adapter
from caesura.settings import BaseModelSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize("missing", qlora.PACKAGES)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(qlora, "find_spec", lambda name: None if name == missing else object())

    with pytest.raises(
        InvalidRequest, match=rf"'{missing}', which is not installed here: pip install 'caesura\[qlora\]'"
    ):
        qlora.check_qlora(has_gpu=True)


def test_a_base_is_not_loaded_in_4_bits_on_a_cpu(micro_model: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs a GPU") as refused:
        load_quantized_base("micro", BaseModelSettings(path=str(micro_model)), torch.float32, CPU)

    assert (refused.value.param, refused.value.code) == ("adapter.type", "invalid_value")


@pytest.mark.filterwarnings("ignore")  # bitsandbytes' and torch's, of each other
def test_a_base_in_4_bits_says_nearly_the_same_and_takes_adapters(
    micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(loading, "check_qlora", lambda _has_gpu: None)
    settings = BaseModelSettings(path=str(micro_model))
    whole, quantized = (load("micro", settings, torch.float32, CPU).model for load in (load_base, load_quantized_base))
    tokens_BT = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected, got = whole(input_ids=tokens_BT).logits, quantized(input_ids=tokens_BT).logits

    difference = (got - expected).norm() / expected.norm()
    assert 0.001 < difference < 0.5
    shapes = {name: in_out_features(linear) for name, linear in find_linears(whole).items()}
    assert {name: in_out_features(linear) for name, linear in find_linears(quantized).items()} == shapes
    assert isinstance(build_decoder(load_quantized_base("micro", settings, torch.float32, CPU).model), PlainDecoder)
    layers = add_lora(quantized)
    set_adapter(layers, fresh_adapter(layers, 4, 8.0, seed=1))
    with torch.no_grad():
        assert torch.equal(quantized(input_ids=tokens_BT).logits, got)
