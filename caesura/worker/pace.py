"""How long what is left to do will take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from caesura.training.work import Work

#: A unit of validation takes so much of one of training, until one was measured: it has no backward pass. Of the
#: embedded base's it takes 0.3 to 0.4; where products of matrices are all that counts, a half.
VALIDATION_SHARE = 0.4
#: The pace is that of the last tenth of the job's steps, and of so many at least.
MEMORY_SHARE, MIN_MEMORY = 0.1, 10
_KINDS = tuple(part.name for part in fields(Work))


@dataclass(slots=True)
class Pace:
    """Sees how long the parts of every step took. What was seen fades, so that the pace is that of late and of this
    machine.

    `memory`: the number of steps after which what was seen weighs 1/e.
    """

    memory: float
    #: By kind of work: seconds, and the work that was done in them.
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))
    work: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))
    is_first: bool = True
    #: All that was seen is a process's first step, which is slower than all that follow.
    is_tentative: bool = False

    def see(self, done: Work, seconds: Work) -> None:
        """`seconds`: how long each kind of what was done took."""
        is_first, self.is_first = self.is_first, False
        if is_first and self.work["train"]:
            return  # others are known
        kept = 0.0 if self.is_tentative else 1.0 - 1.0 / self.memory
        self.is_tentative = is_first
        for kind in _KINDS:
            if getattr(done, kind):
                self.seconds[kind] = self.seconds[kind] * kept + getattr(seconds, kind)
                self.work[kind] = self.work[kind] * kept + getattr(done, kind)

    def seconds_for(self, left: Work) -> float:
        """Something must have been seen."""
        rate = self.seconds["train"] / self.work["train"]
        rates = {"train": rate, "validation": VALIDATION_SHARE * rate, "checkpoints": 0.0}
        rates |= {kind: self.seconds[kind] / done for kind, done in self.work.items() if done}
        return sum(rates[kind] * getattr(left, kind) for kind in _KINDS)

    def capture(self) -> dict[str, float]:
        """What `recall` takes, in another process too."""
        if self.is_tentative:
            return {}
        named = {"seconds": self.seconds, "work": self.work}
        return {f"{name}.{kind}": values[kind] for name, values in named.items() for kind in _KINDS}

    def recall(self, captured: Mapping[str, float]) -> None:
        for kind in _KINDS:
            self.seconds[kind] = captured.get(f"seconds.{kind}", 0.0)
            self.work[kind] = captured.get(f"work.{kind}", 0.0)
