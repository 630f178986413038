"""What is known of a job that is watched, and how it is drawn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from caesura.commands.output import plain, spell_seconds

_BLOCKS = "▁▂▃▄▅▆▇█"
#: What is drawn as a line: the first of these that a step tells.
CURVES = {"train_loss": "training loss", "train_mean_reward": "training reward"}
NUM_MESSAGES = 5
BAR_WIDTH = 40
COLORS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "paused": "yellow", "running": "cyan"}


@dataclass
class Course:
    """`job` as it was last asked for."""

    job: dict[str, Any]
    #: The data of the newest step.
    newest: dict[str, Any] = field(default_factory=dict[str, Any])
    #: The curve: a value a step.
    values: list[float] = field(default_factory=list[float])
    curve: str | None = None
    messages: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=NUM_MESSAGES))
    is_away: bool = False

    def see(self, event: dict[str, Any]) -> None:
        if event["type"] != "metrics":
            self.messages.append(event)
            return
        self.newest = event["data"]
        self.curve = self.curve or next((name for name in CURVES if name in self.newest), None)
        value = None if self.curve is None else self.newest.get(self.curve)
        if isinstance(value, int | float):
            self.values.append(float(value))

    def draw(self) -> RenderableType:
        step, total = self.newest.get("step", 0), self.newest.get("total_steps")
        parts: list[RenderableType] = [self._headline(), self._bar(step, total)]
        if self.curve is not None and self.values:
            line = Text(f"{CURVES[self.curve]} {self.values[-1]:.4g}  ")
            parts.append(line.append(sparkline(self.values, BAR_WIDTH), style="cyan"))
        parts += self._metrics()
        parts += [Text(f"{event['level']:<5} {plain(event['message'])}", style="dim") for event in self.messages]
        if self.is_away:
            parts.append(Text("The server is away; trying again. The job goes on.", style="yellow"))
        return Group(*parts)

    def _headline(self) -> Text:
        job = self.job
        line = Text(f"{job['id']}  {job['method']['type']} on {plain(job['model'])}  ")
        return line.append(job["status"], style=COLORS.get(job["status"], ""))

    def _bar(self, step: int, total: int | None) -> RenderableType:
        told = "no step yet" if total is None else f"step {step}/{total}"
        finish_at: int | None = self.job["estimated_finish"]
        if finish_at is not None and self.job["status"] == "running":
            told += f", about {spell_seconds(finish_at - time.time())} left"
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=total or 1, completed=step, width=BAR_WIDTH), Text(told))
        return grid

    def _metrics(self) -> list[RenderableType]:
        told = {
            name: value
            for name, value in self.newest.items()
            if isinstance(value, int | float) and name not in ("step", "total_steps", self.curve)
        }
        if not told:
            return []
        grid = Table.grid(padding=(0, 2))
        pairs = [f"{name} {value:.4g}" for name, value in list(told.items())[:12]]
        for begin in range(0, len(pairs), 3):
            grid.add_row(*pairs[begin : begin + 3])
        return [grid]


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a line of blocks, `width` of them at most: each the mean of its share of the values."""
    num = min(width, len(values))
    shares = [values[index * len(values) // num : (index + 1) * len(values) // num] for index in range(num)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((mean - low) / span * (len(_BLOCKS) - 1))] for mean in means)
