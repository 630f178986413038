"""The report of a job's data: a file of its own, which the job names."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, update

from caesura.ids import new_token
from caesura.jobs import File, Job
from caesura.storage import Storage
from caesura.store import tables
from caesura.store.files import insert_file, new_file

#: What the job calls it, beside what the API's schema has.
REPORT = "validation_report"
_FILENAME = "validation_report.json"


def store_report(storage: Storage, report: dict[str, Any], project: str) -> File:
    """Write the report's contents; it is a file once `attach_report` says so. Raises StorageUnavailable."""
    with storage.writer(f"files/{new_token()}") as writer:
        writer.write(json.dumps(report, ensure_ascii=False, indent=2).encode())
    return new_file(writer.blob, _FILENAME, "fine-tune-results", project)


def attach_report(connection: Connection, job: Job, file: File) -> None:
    """Of a job whose row this transaction has."""
    insert_file(connection, file)
    extras = {**job.extras, REPORT: file.id}
    connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(extras=extras))
