"""What a call may use (`Limits`), how well it is confined (`Level`), and how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: OpenAI's documentation says 256 kB. The larger reading, so that no source is refused that runs there.
MAX_SOURCE_BYTES = 256 * 1024


class Level(StrEnum):
    """How well graders are confined here, best first."""

    #: Namespaces by bubblewrap, and all that `KERNEL` does.
    STRONG = "strong"
    #: Landlock, seccomp, resource limits, and another user where the server is root.
    KERNEL = "kernel"
    #: Not at all: no grader is run.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use. The first three are OpenAI's."""

    wall_clock_s: float = 120.0
    #: Address space beyond what the interpreter and the preloaded packages have mapped already.
    memory_bytes: int = 2 * 2**30
    #: Of all files in the call's folder together. They lie in memory, on top of `memory_bytes`.
    file_bytes: int = 2**30
    #: Files and folders. Empty files have no bytes, but the kernel spends about 1 kB on each.
    num_files: int = 20_000
    #: For each call at a time. The kernel counts those of a sandbox's calls together, not of each.
    num_threads: int = 64


class RuntimeFault(Exception):
    """The grader's own failing: it raised, did not compile, or returned something that is no finite number."""

    def __init__(self, details: str) -> None:
        super().__init__(details)
        #: The traceback through the grader's own lines, or one sentence; a few kB at most.
        self.details = details


class SandboxFault(Exception):
    """The call came to no answer: it was stopped, it died, or the sandbox does not work."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        #: A few words, such as "timeout" or "killed (signal 9)".
        self.kind = kind
