"""What the server knows, in SQL. A status changes in one conditional UPDATE, with its event, in one transaction.

One implementation over SQLAlchemy Core serves every dialect, so the classes here are themselves the contract:
`Store.files`, `.jobs` (what the API asks), `.attempts` (what a worker may write, every write fenced by its lease),
`.models`, `.permissions`, `.rollouts`, `.responses`, `.uploads`, `.recovery` (what the scheduler mends), `.keys` and
`.webhooks`.
"""

from __future__ import annotations

from pathlib import Path

from caesura.store.attempts import Attempts
from caesura.store.database import Database
from caesura.store.files import Files
from caesura.store.jobs import Jobs
from caesura.store.keys import Keys
from caesura.store.models import Models
from caesura.store.permissions import Permissions
from caesura.store.recovery import Recovery
from caesura.store.responses import Responses
from caesura.store.rollouts import Rollouts
from caesura.store.uploads import Uploads
from caesura.store.webhooks import Webhooks


class Store:
    """The views of one database, of all of it or of what is one project's."""

    def __init__(self, database: Database, project: str | None = None) -> None:
        self.database = database
        self.files = Files(database, project)
        self.jobs = Jobs(database, project)
        self.attempts = Attempts(database)
        self.models = Models(database, project)
        self.permissions = Permissions(database)
        self.rollouts = Rollouts(database, project)
        self.responses = Responses(database, project)
        self.uploads = Uploads(database, project)
        self.recovery = Recovery(database)
        self.keys = Keys(database)
        self.webhooks = Webhooks(database, project)

    def of(self, project: str) -> Store:
        """The same, as the project sees it: what is another project's does not exist."""
        return Store(self.database, project)

    def close(self) -> None:
        self.database.close()


def open_store(data_dir: Path) -> Store:
    """The store in `data_dir`, its tables made or brought up to date."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(f"sqlite:///{data_dir / 'caesura.db'}")
    database.migrate()
    return Store(database)


__all__ = ["Store", "open_store"]
