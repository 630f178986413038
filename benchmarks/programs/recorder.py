"""Counts and times training steps, in the same way for every contender."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

#: Both contenders pad with it, and no text holds it.
PAD_ID = 0


@dataclass(slots=True)
class Recorder:
    """Told of every forward pass, of the tokens of every step's rows, and of every step's end."""

    num_warmup: int
    num_timed: int
    #: Per step: the tokens of its rows, as the chat template renders them.
    tokens: list[int] = field(default_factory=list[int])
    losses: list[float] = field(default_factory=list[float])
    _positions: int = 0
    _real: int = 0
    _ends: list[tuple[float, float, int, int]] = field(default_factory=list[tuple[float, float, int, int]])

    def watch(self, embedding: nn.Module) -> None:
        """Count the positions that the model computes: what comes into its input embedding."""

        def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._positions += inputs[0].numel()
            self._real += int((inputs[0] != PAD_ID).sum())

        embedding.register_forward_pre_hook(count)

    def begin(self) -> None:
        """The training begins: a step 0 without rows, so that everything from here on is timed (`num_warmup` 1)."""
        self.tokens.append(0)
        self.end_step()

    def end_step(self) -> bool:
        """A step has ended; True when it was the last one to do."""
        self._ends.append((time.perf_counter(), time.process_time(), self._positions, self._real))
        return len(self._ends) == self.num_warmup + self.num_timed

    def result(self, before_s: float = 0.0, before_cpu_s: float = 0.0) -> dict[str, Any]:
        """What the timed steps come to. `before_s`: work for them that was done before the training began."""
        first, last = self._ends[self.num_warmup - 1], self._ends[-1]
        wall_s, cpu_s, positions, real = (after - before for before, after in zip(first, last, strict=True))
        wall_s, cpu_s = wall_s + before_s, cpu_s + before_cpu_s
        num_tokens = sum(self.tokens[self.num_warmup : len(self._ends)])
        return {
            "tokens_s": num_tokens / wall_s,
            "tokens_cpu_s": num_tokens / cpu_s,
            "cpu_per_wall": cpu_s / wall_s,
            "real_share": real / positions,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "loss": sum(self.losses) / len(self.losses),
        }

    def first_step_s(self) -> float:
        """From `begin` to the end of the first step."""
        return self._ends[1][0] - self._ends[0][0]

    def rate_of_last(self, num_steps: int) -> float:
        """Tokens a second over the last steps."""
        wall_s = self._ends[-1][0] - self._ends[-1 - num_steps][0]
        return sum(self.tokens[len(self._ends) - num_steps : len(self._ends)]) / wall_s
