"""How often a key may ask, and how slowly wrong keys are answered."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

#: Keys and addresses that are remembered; the longest unheard of is forgotten first.
MAX_REMEMBERED = 4096
MINUTE_S = 60.0
#: The wait for the answer to a wrong key doubles with each from the same address, between these two.
MIN_DELAY_S, MAX_DELAY_S = 0.1, 2.0
#: An address that was silent for so long begins anew.
FORGIVEN_S = 60.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left to a key."""

    limit: int
    remaining: int
    #: Until all is there again.
    reset_s: float
    #: Until one more request may come; 0: it may now.
    retry_s: float

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _spell(self.reset_s),
        }


class Meter:
    """A bucket for each key, of as many requests as it has a minute, that fills evenly. Used from one event loop."""

    def __init__(self) -> None:
        #: By key: requests that are left, and when that was so.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, per_minute: int) -> Allowance:
        """Count one request, unless none is left."""
        now = time.monotonic()
        left, then = self._buckets.pop(key, (float(per_minute), now))
        left = min(per_minute, left + (now - then) * per_minute / MINUTE_S)
        is_free = left >= 1.0
        left -= is_free
        self._buckets[key] = left, now
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        one_s = MINUTE_S / per_minute
        return Allowance(per_minute, int(left), (per_minute - left) * one_s, 0.0 if is_free else (1 - left) * one_s)


class Patience:
    """Wrong keys by the address that they came from. Used from one event loop."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def delay_s(self, address: str) -> float:
        """Count a wrong key; how long its answer shall wait."""
        now = time.monotonic()
        count, then = self._failures.pop(address, (0, now))
        count = 1 if now - then > FORGIVEN_S else count + 1
        self._failures[address] = count, now
        if len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)
        return min(MAX_DELAY_S, MIN_DELAY_S * 2.0 ** min(count - 1, 10))


def _spell(seconds: float) -> str:
    """As Go spells durations: 12ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
