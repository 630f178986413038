"""A merged model, as `transformers` loads it, beside the base with its adapter, as it is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.models.full import FullWeights, get_weights
from caesura.models.loading import build_without_weights
from caesura.models.lora import Adapter, add_lora, fresh_adapter, name_A, set_adapter
from caesura.models.merge import DTYPES, merge, replace_weights
from caesura.settings import BaseModelSettings

TOKENS_BT = torch.arange(24).view(2, 12)


def save_gpt2(folder: Path) -> Path:
    """Its layers are transposed, and one of them is square; its files leave out the prefix of their names."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    state = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(params=["llama", "llama in shards", "gpt2"])
def base(request: pytest.FixtureRequest, micro_model: Path, tmp_path: Path) -> Path:
    if request.param == "gpt2":
        return save_gpt2(tmp_path / "gpt2")
    if request.param == "llama":
        return micro_model
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(micro_model).save_pretrained(folder, max_shard_size="200KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def random_adapter(model: nn.Module, *last_parts: str) -> Adapter:
    layers = {name: layer for name, layer in add_lora(model).items() if name.endswith(last_parts or ("",))}
    adapter = fresh_adapter(layers, rank=4, alpha=6.0, seed=1)
    for name, tensor in adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return adapter


def write_merged(base: Path, tuned: Adapter | FullWeights, target: Path) -> Path:
    model = build_without_weights("base", BaseModelSettings(path=str(base)))
    target.mkdir()
    put_in = replace_weights(base, tuned, model) if isinstance(tuned, FullWeights) else merge(base, tuned, model)
    for entry in put_in.entries("A card.\n"):
        data = b"".join(entry.pieces)
        assert len(data) == entry.num_bytes
        (target / entry.name).write_bytes(data)
    return target


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS_BT).logits


@pytest.mark.parametrize("last_parts", [(), ("q_proj", "down_proj", "c_proj")], ids=["all", "some"])
def test_a_merged_model_says_what_the_base_with_its_adapter_says(
    base: Path, last_parts: tuple[str, ...], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = logits(model)
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(base), *last_parts)
    set_adapter(add_lora(model), adapter)

    merged = AutoModelForCausalLM.from_pretrained(write_merged(base, adapter, tmp_path / "merged")).eval()

    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(merged) - before).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_a_weight_keeps_its_dtype_and_what_no_adapter_changes_keeps_its_bytes(
    micro_model: Path, dtype: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(micro_model, base)
    with safe_open(base / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).to(DTYPES[dtype]) for name in file.keys()}  # noqa: SIM118
    save_file({**tensors, "a.odd": torch.ones(3, dtype=torch.uint8)}, base / "model.safetensors")
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(micro_model), "q_proj")
    write_merged(base, adapter, tmp_path / "merged")

    data = (tmp_path / "merged" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    places = [told["data_offsets"][0] for told in header.values() if told.get("dtype") == dtype]
    assert not any(place % DTYPES[dtype].itemsize for place in places)
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {*tensors, "a.odd"}
        for name, tensor in tensors.items():
            merged = file.get_tensor(name)
            assert merged.dtype == DTYPES[dtype]
            assert torch.equal(merged, tensor) != name.endswith("q_proj.weight")
        layer = "model.layers.0.self_attn.q_proj"
        lora_A, lora_B = (adapter.weights[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
        expected = tensors[f"{layer}.weight"].float() + 1.5 * (lora_B @ lora_A)
        torch.testing.assert_close(
            file.get_tensor(f"{layer}.weight").float(), expected.to(DTYPES[dtype]).float(), rtol=1e-3, atol=1e-6
        )


def test_what_a_model_needs_beside_its_weights_comes_along(micro_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(micro_model, base)
    for name in ("LICENSE", "README.md", "pytorch_model.bin", "modeling.py"):
        (base / name).write_text("the base's")
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(micro_model))
    target = write_merged(base, adapter, tmp_path / "merged")

    assert {path.name for path in target.iterdir()} == {
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (target / "README.md").read_text() == "A card.\n"
    messages = [{"role": "user", "content": "Hi"}]
    ours, theirs = (AutoTokenizer.from_pretrained(folder).apply_chat_template(messages) for folder in (target, base))
    assert ours == theirs


def test_a_chat_template_in_the_tokenizers_config_gets_a_file_of_its_own(micro_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(micro_model, base)
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(micro_model))

    assert (write_merged(base, adapter, tmp_path / "merged") / "chat_template.jinja").read_text() == template


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()}


def quantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.int8) if "q_proj" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("change", "how"), [(rename, "under another name"), (quantize, "as I8")])
def test_a_base_whose_files_cannot_be_merged_into_is_refused_with_the_remedy(
    micro_model: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], how: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(micro_model, base)
    save_file(change(read_tensors(base)), base / "model.safetensors")
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(micro_model))

    with pytest.raises(InvalidRequest, match=rf"layer 'model\.layers\.0\.self_attn\.q_proj' {how}.*format=peft"):
        write_merged(base, adapter, tmp_path / "merged")


def test_an_adapter_of_another_model_is_refused(micro_model: Path, tmp_path: Path) -> None:
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(micro_model))
    name = name_A("model.layers.1.mlp.up_proj")
    adapter.weights[name] = adapter.weights[name][:, 1:]

    with pytest.raises(BlobDamaged, match="up_proj' have the wrong shape"):
        write_merged(micro_model, adapter, tmp_path / "merged")


def random_weights(base: Path) -> FullWeights:
    """Near those of the base."""
    generator = torch.Generator().manual_seed(3)
    full = get_weights(AutoModelForCausalLM.from_pretrained(base))
    for tensor in full.weights.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return full


def read_tensors(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_a_model_with_weights_of_its_own_says_elsewhere_what_its_weights_say(base: Path, tmp_path: Path) -> None:
    full = random_weights(base)
    there = AutoModelForCausalLM.from_pretrained(write_merged(base, full, tmp_path / "merged")).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()

    assert get_weights(there).weights.keys() == full.weights.keys()
    assert all(torch.equal(weight, full.weights[name]) for name, weight in there.named_parameters())
    assert (logits(there) - logits(plain)).abs().max() > 0.1


def test_own_weights_are_written_in_the_dtype_of_each_and_everywhere_where_one_that_is_shared_stands(
    micro_model: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(micro_model, base)
    tensors = {name: tensor.bfloat16() for name, tensor in read_tensors(micro_model).items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # as some files have it
    tensors["a.buffer"] = torch.arange(3)
    save_file(tensors, base / "model.safetensors")
    full = random_weights(micro_model)
    written = read_tensors(write_merged(base, full, tmp_path / "merged"))

    assert {name: tensor.dtype for name, tensor in written.items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }
    assert torch.equal(written.pop("a.buffer"), torch.arange(3))
    assert torch.equal(written.pop("lm_head.weight"), full.weights["model.embed_tokens.weight"].bfloat16())
    assert written.keys() == full.weights.keys()
    assert all(torch.equal(tensor, full.weights[name].to(tensor.dtype)) for name, tensor in written.items())


def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[1:].clone() if "q_proj" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "how"), [(rename, "under another name"), (quantize, "as I8"), (cut, "in another shape")]
)
def test_a_base_whose_files_have_no_place_for_own_weights_is_told(
    micro_model: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], how: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(micro_model, base)
    save_file(change(read_tensors(base)), base / "model.safetensors")

    with pytest.raises(InvalidRequest, match=rf"weight 'model\.layers\.0\.self_attn\.q_proj\.weight' {how}, so that"):
        write_merged(base, random_weights(micro_model), tmp_path / "merged")


def test_weights_of_another_model_are_refused(micro_model: Path, tmp_path: Path) -> None:
    full = random_weights(micro_model)
    del full.weights["model.norm.weight"]

    with pytest.raises(BlobDamaged, match=r"no weight 'model\.norm\.weight'"):
        write_merged(micro_model, full, tmp_path / "merged")
