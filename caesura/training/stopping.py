"""When further training gains nothing. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class EarlyStopping:
    """Sees the losses of full validations in their order, and says whether the training should end.

    Prechelt 1998, "Early stopping - but when?" (https://doi.org/10.1007/3-540-49430-8_3), its class UP of criteria, but
    against the best loss so far and not against the one before: training ends after `patience` validations in a row
    that were not below the best by more than `min_delta`. One that is not a number is one of these.
    """

    patience: int
    min_delta: float
    best: float = math.inf
    #: Validations since that one.
    num_without_gain: int = 0

    def see(self, loss: float) -> None:
        if loss < self.best - self.min_delta:
            self.best, self.num_without_gain = loss, 0
        else:
            self.num_without_gain += 1

    @property
    def is_over(self) -> bool:
        return self.num_without_gain >= self.patience
