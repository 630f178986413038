"""TRL's GRPOTrainer on the same prompts, with `set` over its defaults."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from caesura.training.adapters import LORA_ALPHA
from caesura.training.hyperparameters import LORA_RANK


class Watching(TrainerCallback):
    def __init__(self, recorder: Recorder, num_samples: int) -> None:
        self._recorder = recorder
        self._num_samples = num_samples

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._recorder.tokens.append(self._num_samples)
        self._recorder.losses.append(0.0)
        self._recorder.end_step()


def reward(completions: list[Any], **_: Any) -> list[float]:
    """How many different characters an answer has."""
    return [float(len(set(completion[0]["content"]))) for completion in completions]


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked["threads"])
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()
    recorder = Recorder(asked["num_warmup"], asked["num_timed"])
    with TemporaryDirectory() as folder:
        trainer = _make_trainer(asked, recorder, folder)
        recorder.watch(trainer.model.get_input_embeddings())
        trainer.train()
    finish(recorder.result())


def _make_trainer(asked: dict[str, Any], recorder: Recorder, folder: str) -> GRPOTrainer:
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": asked["num_warmup"] + asked["num_timed"],
        "num_generations": asked["num_samples"],
        "max_completion_length": asked["num_tokens"],
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": asked["seed"],
    }
    config = GRPOConfig(**(chosen | asked["set"]))
    rows = [json.loads(line) for line in Path(asked["data"]).read_text().splitlines()]
    return GRPOTrainer(
        model=asked["model"],
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["messages"]} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(asked["model"]),
        peft_config=LoraConfig(
            r=LORA_RANK, lora_alpha=int(LORA_ALPHA), target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Watching(recorder, config.per_device_train_batch_size)],
    )


if __name__ == "__main__":
    main()
