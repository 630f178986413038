"""Who asks: keys, the projects they open, and what their roles allow. No I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from caesura.errors import Forbidden
from caesura.jobs import FIRST_PROJECT


class Role(StrEnum):
    """Each may do what those before it may, but for the first, which only watches."""

    #: Reads the server's metrics, and nothing else.
    MONITOR = "monitor"
    #: Works in its project.
    MEMBER = "member"
    #: Deletes models, and shares checkpoints with other projects.
    OWNER = "owner"
    #: Does so in every project of its organization.
    ADMIN = "admin"


_RANKS = tuple(Role)


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    organization: str
    name: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Caller:
    """What a key stands for."""

    #: None: the server's own first key, or its workers'.
    key_id: str | None
    organization: str
    project: str = FIRST_PROJECT
    role: Role = Role.ADMIN
    #: One of the server's own processes, which works in any project.
    is_server: bool = False
    #: None: the server's settings say.
    requests_per_minute: int | None = None
    max_file_bytes: int | None = None

    def require(self, role: Role, what: str) -> None:
        """Raises Forbidden for a caller whose role is less than `role`, who may not do `what`."""
        if _RANKS.index(self.role) < _RANKS.index(role):
            raise Forbidden(
                f"The role of this key is '{self.role}'; to {what} takes the role '{role}'.",
                code="insufficient_permissions",
            )

    def require_monitor(self) -> None:
        """Raises Forbidden for a caller who may not read the server's metrics, which are of all projects."""
        if self.role not in (Role.MONITOR, Role.ADMIN):
            raise Forbidden(
                f"The role of this key is '{self.role}'; to read the metrics, which are of all projects, takes "
                f"'{Role.MONITOR}' or '{Role.ADMIN}'.",
                code="insufficient_permissions",
            )

    @property
    def organization_id(self) -> str:
        return f"org-{self.organization}"


def hash_key(key: bytes) -> str:
    """SHA-256 of the key as it is sent. One of ours holds more than 200 random bits, so nothing slower is needed."""
    return hashlib.sha256(key).hexdigest()
