"""The result file: one row a step, in the columns of OpenAI's and of Azure's files. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

#: Column → the metric it shows. `train_accuracy` is the older name that users' scripts still plot.
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "train_mean_token_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
}
#: What a job of preferences has beside them.
PREFERENCE_COLUMNS = {
    f"{prefix}_reward_{name}": f"{prefix}_reward_{name}"
    for prefix in ("train", "valid", "full_valid")
    for name in ("accuracy", "margin", "chosen", "rejected")
}
#: What a job of reinforcement has.
REWARD_COLUMNS = {
    name: name
    for name in (
        "step",
        "train_mean_reward",
        "full_valid_mean_reward",
        "full_valid_mean_parse_error",
        "train_loss",
        "mean_unresponsive_rewards",
        "completion_tokens_mean",
        "reasoning_tokens_mean",
        "valid_reasoning_tokens_mean",
        "train_reward_mean",
        "valid_reward_mean",
    )
}
_COLUMNS = {"supervised": COLUMNS, "dpo": COLUMNS | PREFERENCE_COLUMNS, "reinforcement": REWARD_COLUMNS}


def to_csv(metrics: Iterable[Mapping[str, Any]], method: str) -> bytes:
    """The file's bytes from the data of the metric events; cells are empty where nothing was measured."""
    columns = _COLUMNS[method]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([step.get(metric, "") for metric in columns.values()] for step in metrics)
    return text.getvalue().encode()
