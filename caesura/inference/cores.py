"""How many threads to compute with: as many as there are cores that others leave free.

Threads meet after every operation, and those of a small model take microseconds: a thread that waits for its core holds
up all the others. Beside a program that used both of two cores, one thread took 3 ms for what two took 14 ms for.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

#: Between two looks.
INTERVAL_S = 0.5
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Use:
    """CPU seconds since some moment: of all programs on these cores, and of this process."""

    at_s: float
    all_s: float
    own_s: float


class FreeCores:
    """Looks at the cores that this process may use. Where the system does not tell, all of them are free."""

    def __init__(self) -> None:
        self._cores = os.sched_getaffinity(0) if _STAT.exists() else set(range(os.cpu_count() or 1))
        self._use = self._look()
        self._num_free = len(self._cores)

    def count(self) -> int:
        """At least 1. Costs next to nothing: it looks only now and then."""
        if self._use is not None and time.monotonic() - self._use.at_s >= INTERVAL_S:
            now = self._look()
            assert now is not None
            self._num_free = num_free(self._use, now, len(self._cores))
            self._use = now
        return self._num_free

    def _look(self) -> Use | None:
        if not _STAT.exists():
            return None
        return Use(time.monotonic(), busy_s(_STAT.read_text(), self._cores), time.process_time())


def busy_s(stat: str, cores: set[int]) -> float:
    """The CPU time that was used on these cores, from the text of /proc/stat (proc(5)): all but idle, waiting and
    stolen time, and guests' time, which stands under user time too.
    """
    ticks = 0
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, numbers)
            ticks += user + nice + system + irq + softirq
    return ticks / os.sysconf("SC_CLK_TCK")


def num_free(before: Use, now: Use, num_cores: int) -> int:
    """The cores that others did not use meanwhile, to the nearest whole one; at least 1."""
    of_others_s = (now.all_s - before.all_s) - (now.own_s - before.own_s)
    num_taken = max(0.0, of_others_s) / (now.at_s - before.at_s)
    return max(1, round(num_cores - num_taken))
