"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Options:
    #: Small numbers: shows that everything works, the figures mean nothing.
    quick: bool
    #: How often each contender runs; medians are reported.
    rounds: int
    #: Threads of everything that computes.
    threads: int

    @property
    def num_rows(self) -> int:
        """Rows of the training file. 640 make transformers' length grouping sort 20 batches at a time (see below)."""
        return 64 if self.quick else 640

    @property
    def num_warmup_steps(self) -> int:
        return self.num_timed_steps

    @property
    def num_timed_steps(self) -> int:
        """One of the runs of batches, from long to short, that transformers' length grouping makes: it sorts
        `rows // (4 * batch size)` batches at a time, and a part of such a run would not hold all lengths.
        """
        return self.num_rows // (4 * BATCH_SIZE)
