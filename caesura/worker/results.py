"""The result files: one row a step, in the columns of OpenAI's and of Azure's files; and one row a row of the training
file, which is our own. Pure."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caesura.training.method import RowLoss

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
#: What the file of a supervised job's rows has.
ROW_COLUMNS = ("line", "tokens", "loss", "z_score")
_COLUMNS = {"supervised": COLUMNS, "dpo": COLUMNS | PREFERENCE_COLUMNS, "reinforcement": REWARD_COLUMNS}


#: Of what lies so far from the rest Iglewicz & Hoaglin say to take a look.
ABNORMAL_SCORE = 3.5
#: The median distance from the median of a normal distribution, in standard deviations.
_NORMAL_DISTANCE = 0.6745
#: An event names this many lines.
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """`score`: how far from the other rows its loss is; None where most rows have the same loss."""

    row: RowLoss
    score: float | None


def score(rows: Sequence[RowLoss]) -> list[ScoredRow]:
    """The modified z-score of each row's loss: 0.6745 (loss - median) / MAD, the median of |loss - median|.

    Iglewicz & Hoaglin 1993, "How to detect and handle outliers" (ASQC Basic References in Quality Control, volume 16):
    unlike a mean and a standard deviation, the two medians are not drawn to the outliers themselves.
    """
    losses = [row.loss for row in rows]
    middle = statistics.median(losses) if losses else 0.0
    spread = statistics.median(abs(loss - middle) for loss in losses) if losses else 0.0
    return [ScoredRow(row, _NORMAL_DISTANCE * (row.loss - middle) / spread if spread else None) for row in rows]


def describe_abnormal(rows: Sequence[ScoredRow]) -> str | None:
    """`12 (loss 4.31), 7 (loss 3.90)`: the lines that were hardest to learn; None where none stands out."""
    abnormal = [(row.score, row.row) for row in rows if row.score is not None and row.score >= ABNORMAL_SCORE]
    abnormal.sort(key=lambda found: (-found[0], found[1].line))
    return ", ".join(f"{row.line} (loss {row.loss:.2f})" for _, row in abnormal[:_NUM_NAMED]) or None


def rows_to_csv(rows: Iterable[ScoredRow]) -> bytes:
    """The file's bytes; the score's cell is empty where there is none."""
    lines = [(row.row.line, row.row.num_tokens, row.row.loss, "" if row.score is None else row.score) for row in rows]
    return _write(ROW_COLUMNS, lines)


def to_csv(metrics: Iterable[Mapping[str, Any]], method: str) -> bytes:
    """The file's bytes from the data of the metric events; cells are empty where nothing was measured."""
    columns = _COLUMNS[method]
    return _write(columns, ([step.get(metric, "") for metric in columns.values()] for step in metrics))


def _write(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()
