"""A base model that is in memory before the job that needs it comes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from caesura.errors import InvalidRequest
from caesura.models.loading import Base, choose_device, load_base, measure_base
from caesura.settings import EMBEDDED_BASE, BaseModelSettings, Settings
from caesura.training.plan import choose_dtype

logger = logging.getLogger(__name__)

_MEMORY = Path("/proc/meminfo")
#: A base is held only where so many more would fit beside it: jobs at work need memory, and they came first.
NUM_TO_FIT = 2
#: Name, size and time of each file of a folder; None of what is no folder.
Fingerprint = tuple[tuple[str, int, int], ...] | None


@dataclass(slots=True)
class WarmBase:
    """Loaded on the CPU, where it is in no job's way; it is given away once, and moved only then."""

    base: Base
    path: str
    dtype: torch.dtype
    fingerprint: Fingerprint
    is_given: bool = False

    def load(self, name: str, settings: BaseModelSettings, dtype: torch.dtype, device: torch.device) -> Base:
        """As `load_base`: what is held, if it is that and its files are what they were; else what is loaded now."""
        wanted = (name, settings.path, dtype, _fingerprint(settings.path))
        is_held = (self.base.name, self.path, self.dtype, self.fingerprint) == wanted and not self.is_given
        self.is_given = True
        held, self.base = self.base, replace(self.base, model=torch.nn.Identity())  # the weights are the job's now
        if not is_held:
            del held
            return load_base(name, settings, dtype, device)
        held.model.to(device)
        return replace(held, context_window=settings.context_window or held.context_window)


def warm_up(settings: Settings, wanted: str | None) -> WarmBase:
    """The base `wanted`, in the arithmetic of the settings; the embedded one where that cannot be held or loaded."""
    device = choose_device(settings.device)
    dtype: torch.dtype = getattr(torch, choose_dtype(settings.dtype, device))
    base_settings = settings.bases().get(wanted or EMBEDDED_BASE)
    if wanted is not None and wanted != EMBEDDED_BASE and base_settings is not None:
        try:
            if _fits(wanted, base_settings, dtype):
                return _load(wanted, base_settings, dtype)
            logger.info("the spare does not hold the base '%s': memory is short", wanted)
        except InvalidRequest as error:  # told to the job that needs it
            logger.warning("the spare does not hold the base '%s': %s", wanted, error.message)
    return _load(EMBEDDED_BASE, settings.bases()[EMBEDDED_BASE], dtype)


def _load(name: str, settings: BaseModelSettings, dtype: torch.dtype) -> WarmBase:
    fingerprint = _fingerprint(settings.path)  # before they are read: what changes meanwhile is noticed
    base = load_base(name, settings, dtype, torch.device("cpu"))
    return WarmBase(base, settings.path, dtype, fingerprint)


def _fits(name: str, settings: BaseModelSettings, dtype: torch.dtype) -> bool:
    num_parameters, _ = measure_base(name, settings)
    return NUM_TO_FIT * num_parameters * dtype.itemsize <= _available_bytes()


def _available_bytes() -> int:
    """What a process may take without another's being moved out of memory; 0 where that is not known."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def _fingerprint(path: str) -> Fingerprint:
    folder = Path(path)
    if not folder.is_dir():
        return None
    files = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in files)
