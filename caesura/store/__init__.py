"""What the server knows, in SQL. A status changes in one conditional UPDATE, with its event, in one transaction.

One implementation over SQLAlchemy Core serves every dialect (`Database`), so the classes here are the contract:
`Store.files`, `.jobs` (what the API asks), `.attempts` (what a worker may write, every write fenced by its lease),
`.models`, `.permissions`, `.rollouts`, `.responses`, `.uploads`, `.recovery` (what the scheduler mends), `.keys`,
`.idempotency` (what was answered to whom), `.webhooks`, `.shipments` (what integrations are to be sent) and
`.measures` (what is counted of all jobs).
"""

from __future__ import annotations

from pathlib import Path

from caesura.store.attempts import Attempts
from caesura.store.database import Database
from caesura.store.files import Files
from caesura.store.idempotency import IdempotencyKeys
from caesura.store.jobs import Jobs
from caesura.store.keys import Keys
from caesura.store.measures import Measures
from caesura.store.models import Models
from caesura.store.permissions import Permissions
from caesura.store.postgres import PostgresDatabase
from caesura.store.recovery import Recovery
from caesura.store.responses import Responses
from caesura.store.rollouts import Rollouts
from caesura.store.shipments import Shipments
from caesura.store.sqlite import SqliteDatabase
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
        self.idempotency = IdempotencyKeys(database, project)
        self.keys = Keys(database)
        self.webhooks = Webhooks(database, project)
        self.measures = Measures(database)
        self.shipments = Shipments(database)
        #: By project: to put together their queries takes longer than to ask them.
        self._views: dict[str, Store] = {}

    def of(self, project: str) -> Store:
        """The same, as the project sees it: what is another project's does not exist."""
        view = self._views.get(project)
        if view is None:
            view = self._views[project] = Store(self.database, project)
        return view

    def close(self) -> None:
        self.database.close()


def open_store(data_dir: Path, url: str | None = None) -> Store:
    """The store in the PostgreSQL database at `url`, else in a file in `data_dir`; its tables made or brought up to
    date. Raises SettingsInvalid for a URL that is none.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = SqliteDatabase(data_dir / "caesura.db") if url is None else PostgresDatabase(url)
    database.migrate()
    return Store(database)


__all__ = ["Store", "open_store"]
