"""The sandbox for Python graders: `Sandbox` runs them, `find_level` says how well it can be done on this machine."""

from __future__ import annotations

from caesura.graders.sandbox.level import find_level
from caesura.graders.sandbox.limits import MAX_SOURCE_BYTES, Level, Limits, RuntimeFault, SandboxFault
from caesura.graders.sandbox.sandbox import Sandbox

__all__ = ["MAX_SOURCE_BYTES", "Level", "Limits", "RuntimeFault", "Sandbox", "SandboxFault", "find_level"]
