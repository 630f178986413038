"""A Qwen 3 of random weights in a folder, with the embedded base's tokenizer: for rates, not for answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.programs import arguments, finish
from caesura.models.lora import find_linears, in_out_features
from caesura.settings import EMBEDDED_BASE_PATH
from caesura.training.hyperparameters import LORA_RANK

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 4096,
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 40,
    },
    "large": {
        "vocab_size": 8192,
        "hidden_size": 640,
        "intermediate_size": 2560,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "head_dim": 64,
    },
}


def main() -> None:
    asked = arguments()
    torch.manual_seed(1)
    config = Qwen3Config(
        **SIZES[asked["size"]],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(asked["folder"])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_BASE_PATH / name, Path(asked["folder"]) / name)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_lora = sum(LORA_RANK * sum(in_out_features(linear)) for linear in find_linears(model).values())
    finish({"num_parameters": num_parameters, "num_lora_parameters": num_lora})


if __name__ == "__main__":
    main()
