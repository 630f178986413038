"""What the server knows, in SQL. A status changes in one conditional UPDATE, with its event, in one transaction.

One implementation over SQLAlchemy Core serves every dialect, so the classes here are themselves the contract:
`Store.files`, `.jobs` (what the API asks), `.attempts` (what a worker may write, every write fenced by its lease),
`.models`, `.rollouts`, `.responses` and `.recovery` (what the scheduler mends).
"""

from __future__ import annotations

from pathlib import Path

from caesura.store.attempts import Attempts
from caesura.store.database import Database
from caesura.store.files import Files
from caesura.store.jobs import Jobs
from caesura.store.models import Models
from caesura.store.recovery import Recovery
from caesura.store.responses import Responses
from caesura.store.rollouts import Rollouts


class Store:
    """The seven views of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.files = Files(database)
        self.jobs = Jobs(database)
        self.attempts = Attempts(database)
        self.models = Models(database)
        self.rollouts = Rollouts(database)
        self.responses = Responses(database)
        self.recovery = Recovery(database)

    def close(self) -> None:
        self.database.close()


def open_store(data_dir: Path) -> Store:
    """The store in `data_dir`, its tables made or brought up to date."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(f"sqlite:///{data_dir / 'caesura.db'}")
    database.migrate()
    return Store(database)


__all__ = ["Store", "open_store"]
