"""What of W&B's server its client needs to log a run: GraphQL for runs, the stream of their files, uploads."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "the-team"


@dataclass
class RunAtWandb:
    project: str
    id: str
    name: str
    entity: str = ""
    tags: list[str] = field(default_factory=list[str])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    #: By file, the lines as they were streamed: each batch says behind how many lines it stands.
    lines: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    #: What the client said at each end of it.
    exit_codes: list[int] = field(default_factory=list[int])

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def steps(self) -> list[int]:
        return [line["_step"] for line in self.history]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.lines.get("wandb-summary.json", ["{}"])[-1])

    def told_config(self, name: str) -> Any:
        return self.config[name]["value"]


class WandbServer:
    """Listens from the beginning. `stop` and `start`: it is gone, and back at the same address."""

    def __init__(self) -> None:
        self.runs: dict[str, RunAtWandb] = {}
        self.key = KEY
        self.inits: list[str] = []
        self.port = 0
        self._server: _QuietServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def steps(self, run_id: str) -> list[int]:
        """What its history has; nothing where there is no such run."""
        return self.runs[run_id].steps if run_id in self.runs else []

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"wandb": self})
        self._server = _QuietServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.is_gone = True
        self._server.shutdown()
        self._server.server_close()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL query."""
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(variables)}
        if "RunResumeStatus" in query:
            return {"model": {**_PROJECT, "bucket": self._resume(variables["name"])}}
        if "run(name: $name)" in query:
            return {"project": {"run": self._describe(variables["name"])}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/uploads/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "1", "entity": ENTITY, "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def stream(self, run_id: str, told: dict[str, Any]) -> None:
        run = self.runs[run_id]
        files: dict[str, Any] = told.get("files") or {}
        for name, file in files.items():
            lines = run.lines.setdefault(name, [])
            lines[file["offset"] : file["offset"] + len(file["content"])] = file["content"]
        if told.get("complete"):
            run.exit_codes.append(told["exitcode"])

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        is_new = variables["name"] not in self.runs
        project = variables.get("project") or variables.get("modelName") or "uncategorized"
        run = self.runs.setdefault(variables["name"], RunAtWandb(project, variables["name"], ""))
        run.name = variables.get("displayName") or run.name
        run.entity = variables.get("entity") or ENTITY
        run.tags = variables.get("tags") or run.tags
        run.config |= json.loads(variables.get("config") or "{}")
        place = {"id": "1", "name": run.project, "entity": {"id": "1", "name": run.entity}}
        bucket = {"id": run.id, "name": run.id, "displayName": run.name, "config": json.dumps(run.config)}
        num_lines = len(run.lines.get("wandb-history.jsonl", []))
        return {"bucket": {**bucket, "project": place, "historyLineCount": num_lines}, "inserted": is_new}

    def _resume(self, run_id: str) -> dict[str, Any] | None:
        self.inits.append(run_id)
        run = self.runs.get(run_id)
        if run is None:
            return None
        history = run.lines.get("wandb-history.jsonl", [])
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "config": json.dumps(run.config),
            "tags": run.tags,
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(history),
            "historyTail": json.dumps(history[-1:]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "wandbConfig": '{"t": 1}',
        }

    def _describe(self, run_id: str) -> dict[str, Any] | None:
        run = self.runs.get(run_id)
        if run is None:
            return None
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "projectId": "1",
            "tags": run.tags,
            "state": "running",
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "createdAt": "2026-01-01T00:00:00",
            "historyLineCount": len(run.history),
            "historyKeys": {"lastStep": max(run.steps, default=-1), "keys": {}},
            "user": {"name": "me", "username": "me"},
        }


_PROJECT = {"id": "1", "name": "p", "entity": {"id": "1", "name": ENTITY}}


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    is_gone = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up."""


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if cast(_QuietServer, self.server).is_gone:
            self.close_connection = True
            return
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        parts = self.path.strip("/").split("/")
        if self.path == "/graphql":
            if not self._may_come():
                self._answer(401, {"errors": [{"message": "invalid API key"}]})
                return
            asked = json.loads(body)
            self._answer(200, {"data": self.wandb.answer(asked["query"], asked.get("variables") or {})})
        elif parts[-1] == "file_stream":
            self.wandb.stream(parts[3], json.loads(body))
            self._answer(200, {})
        else:
            self._answer(200, {})

    do_PUT = do_POST

    def _may_come(self) -> bool:
        given = self.headers.get("authorization", "").removeprefix("Basic ")
        return base64.b64decode(given).decode() == f"api:{self.wandb.key}"

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""
