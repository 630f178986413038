"""Adapters of the embedded base with random weights, in PEFT's files."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.programs import arguments, finish
from caesura.models.loading import load_base
from caesura.models.lora import add_lora, fresh_adapter, to_files
from caesura.settings import EMBEDDED_BASE, EMBEDDED_BASE_PATH, BaseModelSettings
from caesura.training.adapters import LORA_ALPHA
from caesura.training.hyperparameters import LORA_RANK


def main() -> None:
    asked = arguments()
    base = load_base(EMBEDDED_BASE, BaseModelSettings(path=str(EMBEDDED_BASE_PATH)), torch.float32, torch.device("cpu"))
    layers = add_lora(base.model)
    folders: list[str] = []
    for seed in range(asked["number"]):
        adapter = fresh_adapter(layers, LORA_RANK, LORA_ALPHA, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in adapter.weights.items():
            if "lora_B" in name:
                tensor.normal_(std=0.01, generator=generator)
        folder = Path(asked["folder"]) / str(seed)
        folder.mkdir(parents=True)
        for name, data in to_files(adapter, EMBEDDED_BASE).items():
            (folder / name).write_bytes(data)
        folders.append(str(folder))
    finish({"folders": folders})


if __name__ == "__main__":
    main()
