"""How much a training has to do: what its end is estimated by. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to do, by kind; a unit of each takes about equally long every time."""

    #: Tokens that are trained on; or answers, of a method that makes them.
    train: float
    #: Tokens, or answers, that are validated.
    validation: float
    checkpoints: float

    def less(self, other: Work) -> Work:
        return Work(self.train - other.train, self.validation - other.validation, self.checkpoints - other.checkpoints)
