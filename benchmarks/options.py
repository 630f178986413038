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
        """Rows of the file that saves are measured on."""
        return 64 if self.quick else 640
