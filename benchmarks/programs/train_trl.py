"""TRL's SFTTrainer on the same rows, with `set` over its defaults."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import (
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from caesura.training.adapters import LORA_ALPHA
from caesura.training.hyperparameters import LORA_RANK, WARMUP_SHARE


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked["threads"])
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()
    recorder = Recorder(1, asked["num_steps"])
    with TemporaryDirectory() as folder:
        trainer = _make_trainer(asked, recorder, folder)
        num_learned = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels[1:])
        trainer.train()
    recorder.losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    finish(recorder.result() | {"num_learned": num_learned})


class Watching(TrainerCallback):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recorder.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._recorder.end_step()


def _make_trainer(asked: dict[str, Any], recorder: Recorder, folder: str) -> SFTTrainer:
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": asked["batch_size"],
        "num_train_epochs": 1,
        "assistant_only_loss": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": asked["seed"],
        # Caesura's, so that losses compare; they cost the same.
        "learning_rate": asked["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP_SHARE,
        "logging_steps": asked["num_steps"] // 4,
    }
    lora = LoraConfig(r=LORA_RANK, lora_alpha=int(LORA_ALPHA), target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=asked["model"],
        args=SFTConfig(**(chosen | asked["set"])),
        train_dataset=Dataset.from_list([json.loads(line) for line in Path(asked["data"]).read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(asked["model"]),
        peft_config=lora if asked["type"] == "lora" else None,
        callbacks=[Watching(recorder)],
    )
    recorder.watch(trainer.model.get_input_embeddings())
    collate = trainer.data_collator

    def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batches are made one ahead of their steps, but in the order of the steps."""
        recorder.tokens.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counting
    return trainer


if __name__ == "__main__":
    main()
