"""Who is to be told what has become of a job, written by the transaction in which it becomes so."""

from __future__ import annotations

import json
import time

from sqlalchemy import Connection, insert, select

from caesura.ids import new_id
from caesura.store import tables

_ENDPOINTS = tables.webhook_endpoints.c


def announce(connection: Connection, job_id: str, project: str, event_type: str) -> None:
    """Have every endpoint that wants events of this type told what has become of the job."""
    wants = (_ENDPOINTS.project == project) | _ENDPOINTS.project.is_(None)
    query = select(_ENDPOINTS.id, _ENDPOINTS.event_types).where(wants)
    # None of them is deleted before the deliveries to it are there.
    query = query.with_for_update(read=True, key_share=True)
    endpoints = [id_ for id_, event_types in connection.execute(query) if event_type in event_types]
    if not endpoints:
        return
    event = {
        "id": new_id("evt_"),
        "object": "event",
        "type": event_type,
        "created_at": int(time.time()),
        "data": {"id": job_id},
    }
    common = {"event_id": event["id"], "created_at": event["created_at"], "body": json.dumps(event)}
    rows = [{**common, "endpoint": endpoint, "num_tries": 0, "due_at": 0.0} for endpoint in endpoints]
    connection.execute(insert(tables.webhook_deliveries), rows)
