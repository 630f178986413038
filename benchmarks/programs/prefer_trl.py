"""TRL's DPOTrainer on the same pairs, with `set` over its defaults."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from caesura.training.adapters import LORA_ALPHA
from caesura.training.hyperparameters import LORA_RANK, WARMUP_SHARE


class Timed(DPOTrainer):
    """The trainer, with its pass over the reference, which is made while it is built, timed."""

    reference_s = reference_cpu_s = 0.0

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        began, cpu_began = time.perf_counter(), time.process_time()
        computed = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_s += time.perf_counter() - began
        self.reference_cpu_s += time.process_time() - cpu_began
        return computed


class Watching(TrainerCallback):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recorder.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._recorder.end_step()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked["threads"])
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()
    recorder = Recorder(1, asked["num_epochs"] * asked["steps_per_epoch"])
    with TemporaryDirectory() as folder:
        trainer = _make_trainer(asked, recorder, folder)
        trainer.train()
    recorder.losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    rows = trainer.train_dataset
    finish(
        recorder.result(trainer.reference_s, trainer.reference_cpu_s)
        | {
            "num_learned": sum(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")),
            "first_step_s": trainer.reference_s + recorder.first_step_s(),
            "last_epoch_s": recorder.rate_of_last(asked["steps_per_epoch"]),
        }
    )


def _make_trainer(asked: dict[str, Any], recorder: Recorder, folder: str) -> Timed:
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": asked["batch_size"],
        "num_train_epochs": asked["num_epochs"],
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": asked["seed"],
        # Caesura's, so that losses compare; they cost the same.
        "learning_rate": asked["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP_SHARE,
        "logging_steps": asked["steps_per_epoch"],
    }
    rows = [json.loads(line) for line in Path(asked["data"]).read_text().splitlines()]
    trainer = Timed(
        model=asked["model"],
        args=DPOConfig(**(chosen | asked["set"])),
        train_dataset=Dataset.from_list([_as_text(row, tokenizer) for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=LORA_RANK, lora_alpha=int(LORA_ALPHA), target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Watching(recorder)],
    )
    recorder.watch(trainer.model.get_input_embeddings())
    collate = trainer.data_collator

    def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batches are made ahead of their steps, but in the order of the steps."""
        sides = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in examples]
        recorder.tokens.append(sum(sides))
        return collate(examples)

    trainer.data_collator = counting
    return trainer


def _as_text(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """As text, to which TRL adds the end of the turn: of messages it would learn the line end behind that as well."""
    options = {"tokenize": False, "add_generation_prompt": True}
    return {
        "prompt": tokenizer.apply_chat_template(row["input"]["messages"], **options),
        "chosen": row["preferred_output"][0]["content"],
        "rejected": row["non_preferred_output"][0]["content"],
    }


if __name__ == "__main__":
    main()
