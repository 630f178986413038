from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.models.lora import (
    Adapter,
    Layers,
    add_lora,
    dropping,
    fresh_adapter,
    from_files,
    get_adapter,
    join,
    name_A,
    set_adapter,
    set_frozen,
    to_files,
    using_adapter,
)

TOKENS_BT = torch.arange(24).view(2, 12)


def load(micro_model: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32).eval()


def gpt2() -> nn.Module:
    """Its linear layers are transposed (`Conv1D`)."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def random_adapter(layers: Layers, seed: int = 1, rank: int = 4, alpha: float = 8.0) -> Adapter:
    """One whose B is not zero, so that it changes what the model says."""
    fresh = fresh_adapter(layers, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in fresh.weights.items()}
    return Adapter(rank, alpha, weights)


def some(layers: Layers, *last_parts: str) -> Layers:
    return {name: layer for name, layer in layers.items() if name.endswith(last_parts)}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS_BT).logits


@pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own, of each other
@pytest.mark.parametrize("make", ["llama", "gpt2"])
def test_an_adapter_computes_what_peft_computes_from_its_files(make: str, micro_model: Path, tmp_path: Path) -> None:
    ours, theirs = (load(micro_model) if make == "llama" else gpt2() for _ in range(2))
    layers = add_lora(ours)
    set_adapter(layers, random_adapter(layers))
    for name, data in to_files(get_adapter(layers, 4, 8.0), "micro").items():
        (tmp_path / name).write_bytes(data)

    peft = PeftModel.from_pretrained(theirs, tmp_path)

    torch.testing.assert_close(logits(ours), logits(peft), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_is_a_function_of_its_seed(micro_model: Path) -> None:
    model = load(micro_model)
    before = logits(model)
    layers = add_lora(model)
    one, same, other = (fresh_adapter(layers, 16, 32.0, seed) for seed in (1, 1, 2))
    set_adapter(layers, one)

    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, same.weights[name]) for name, value in one.weights.items())
    assert not all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_every_linear_layer_but_the_head_gets_an_adapter(micro_model: Path) -> None:
    layers = add_lora(load(micro_model))

    names = {name.rpartition(".")[2] for name in layers}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(layers) == 14


def test_only_the_adapter_gets_gradients(micro_model: Path) -> None:
    model = load(micro_model)
    model.requires_grad_(requires_grad=False)
    layers = add_lora(model)
    set_adapter(layers, random_adapter(layers))
    model(input_ids=TOKENS_BT).logits.sum().backward()

    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"{name}.lora_{side}" for name in layers for side in "AB"}


def test_taking_the_adapter_off_gives_the_base_back(micro_model: Path) -> None:
    model = load(micro_model)
    before = logits(model)
    layers = add_lora(model)
    set_adapter(layers, random_adapter(layers))
    assert not torch.equal(logits(model), before)
    set_adapter(layers, None)

    assert torch.equal(logits(model), before)


def test_an_adapter_reads_back_from_its_files_to_the_bit(micro_model: Path) -> None:
    adapter = random_adapter(add_lora(load(micro_model)))
    files = to_files(adapter, "micro")
    again = from_files(files)

    assert (again.rank, again.alpha) == (adapter.rank, adapter.alpha)
    assert to_files(again, "micro") == files


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_an_adapter_of_another_model_is_refused_and_leaves_the_layers_as_they_were(
    micro_model: Path, damage: str
) -> None:
    model = load(micro_model)
    layers = add_lora(model)
    set_adapter(layers, random_adapter(layers))
    before = logits(model)
    other = random_adapter(layers, seed=2)
    name = next(reversed(other.weights))
    if damage == "missing":
        del other.weights[name]
    else:
        other.weights[name] = other.weights[name][:-1]

    with pytest.raises(BlobDamaged, match=name.removeprefix("base_model.model.").partition(".lora_")[0]):
        set_adapter(layers, other)
    assert torch.equal(logits(model), before)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no linear layers"):
        add_lora(nn.Sequential(nn.Embedding(4, 4)))


@pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own, of each other
def test_an_adapter_of_some_layers_computes_what_peft_computes(micro_model: Path, tmp_path: Path) -> None:
    ours, theirs = load(micro_model), load(micro_model)
    layers = add_lora(ours)
    adapter = random_adapter(some(layers, "q_proj", "down_proj"))
    set_adapter(layers, random_adapter(layers))
    set_adapter(layers, adapter)
    for name, data in to_files(get_adapter(layers, 4, 8.0, 0.25), "micro").items():
        (tmp_path / name).write_bytes(data)

    peft = PeftModel.from_pretrained(theirs, tmp_path)

    torch.testing.assert_close(logits(ours), logits(peft), rtol=1e-5, atol=1e-5)
    config = peft.peft_config["default"]
    assert {name.rpartition(".")[2] for name in config.target_modules} == {"q_proj", "down_proj"}
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8.0, 0.25)


def test_an_adapter_for_a_layer_that_is_not_there_is_refused(micro_model: Path) -> None:
    layers = add_lora(load(micro_model))
    adapter = random_adapter(layers)
    adapter.weights[name_A("model.layers.9.mlp.up_proj")] = adapter.weights[name_A("model.layers.0.mlp.up_proj")]

    with pytest.raises(BlobDamaged, match=r"'model\.layers\.9\.mlp\.up_proj', and the base has no such layer"):
        set_adapter(layers, adapter)


@pytest.mark.parametrize("of", [("",), ("q_proj", "up_proj")], ids=["all", "some"])
def test_a_frozen_adapter_and_one_beside_it_are_one_adapter_whose_scaling_is_1(
    micro_model: Path, of: tuple[str, ...]
) -> None:
    model = load(micro_model)
    layers = add_lora(model)
    first = random_adapter(some(layers, "q_proj", "v_proj"), seed=1, rank=4, alpha=6.0)
    second = random_adapter(some(layers, *of), seed=2, rank=3, alpha=9.0)
    set_frozen(layers, first)
    set_adapter(layers, second)
    beside = logits(model)
    joined = join(first, second)
    set_frozen(layers, None)
    assert not torch.allclose(logits(model), beside, atol=1e-3)
    set_adapter(layers, joined)

    torch.testing.assert_close(logits(model), beside, rtol=1e-5, atol=1e-5)
    assert (joined.rank, joined.alpha, joined.scaling) == (7, 7.0, 1.0)
    assert set(joined.modules) == set(first.modules) | set(second.modules)


def test_a_fresh_adapter_beside_a_frozen_one_changes_nothing_to_the_bit(micro_model: Path) -> None:
    model = load(micro_model)
    layers = add_lora(model)
    first = random_adapter(layers)
    set_adapter(layers, first)
    before = logits(model)
    set_frozen(layers, first)
    set_adapter(layers, fresh_adapter(some(layers, "up_proj"), 2, 4.0, seed=2))
    assert torch.equal(logits(model), before)

    with using_adapter(layers, None):
        assert torch.equal(logits(model), before)


def test_only_the_adapter_beside_a_frozen_one_gets_gradients(micro_model: Path) -> None:
    model = load(micro_model)
    model.requires_grad_(requires_grad=False)
    layers = add_lora(model)
    set_frozen(layers, random_adapter(layers))
    beside = some(layers, "up_proj")
    set_adapter(layers, random_adapter(beside, seed=2))
    model(input_ids=TOKENS_BT).logits.sum().backward()

    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"{name}.lora_{side}" for name in beside for side in "AB"}


def test_what_is_dropped_is_a_function_of_the_seed_and_nothing_is_outside_or_with_another_adapter(
    micro_model: Path,
) -> None:
    model = load(micro_model)
    layers = add_lora(model)
    adapter = random_adapter(layers)
    set_adapter(layers, adapter)
    whole = logits(model)
    with dropping(layers, 0.5, seed=1):
        first, second = logits(model), logits(model)
        with using_adapter(layers, adapter):
            assert torch.equal(logits(model), whole)
        third = logits(model)
    with dropping(layers, 0.5, seed=1):
        again = [logits(model) for _ in range(3)]
    with dropping(layers, 0.5, seed=2):
        other = logits(model)

    assert all(torch.equal(one, same) for one, same in zip((first, second, third), again, strict=True))
    assert not any(torch.equal(one, another) for one, another in ((first, second), (first, other), (first, whole)))
    assert torch.equal(logits(model), whole)


def test_a_share_is_dropped_and_the_rest_scaled_up_so_that_the_mean_stays() -> None:
    model = nn.Sequential(nn.Linear(1000, 1, bias=False))
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    layers = add_lora(model)
    weights = {name_A("0"): torch.eye(1000)[:1000], "base_model.model.0.lora_B.weight": torch.ones(1, 1000)}
    set_adapter(layers, Adapter(1000, 1000.0, weights))
    with dropping(layers, 0.25, seed=1):
        sums = torch.stack([model(torch.ones(1, 1000)).detach() for _ in range(50)])

    # A thousand numbers of 4/3 with the probability 3/4: mean 1000, standard deviation √(1000 · 3/4 · 1/4) · 4/3 = 18.
    assert abs(sums.mean().item() - 1000) < 10
    assert 12 < sums.std().item() < 26
