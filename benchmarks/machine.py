"""Section 0: where the figures come from, and whether anything else ran beside them."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.options import Options

PACKAGES = ("caesura", "torch", "transformers", "trl", "peft", "accelerate")
#: Above this share of the cores, others disturb the figures.
QUIET_PERCENT = 5.0
#: Instructions that matrix products gain from, as the kernel names them.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def run(options: Options) -> str:
    load = os.getloadavg()
    busy = psutil.cpu_percent(interval=1.0)
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"* {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {_versions()}",
        f"* {_processor()}; {cores} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; "
        f"{options.threads} threads for everything that computes",
        f"* load average at the start {load[0]:.2f}, {load[1]:.2f}, {load[2]:.2f}; others used {busy:.0f} % of the "
        "cores in the second before",
    ]
    if busy > QUIET_PERCENT:
        lines.append("* **The machine is not quiet: these figures are disturbed. Compare tok/CPU-s, not tok/s.**")
    if options.quick:
        lines.append("* **A run with --quick: it shows that everything works; its figures mean nothing.**")
    return report.section("The machine", "\n".join(lines))


def _versions() -> str:
    return ", ".join(f"{package} {_version(package)}" for package in PACKAGES)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _processor() -> str:
    """The processor's name and those of its instructions that matter here."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    known = [name for name in INSTRUCTIONS if name in flags]
    model = facts.get("model name", platform.machine())
    family = f" family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return f"{model}{family} ({', '.join(known) or 'no instructions of note'})"
