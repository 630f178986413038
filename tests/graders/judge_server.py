"""An HTTP server on loopback that answers what a test told it to, and keeps what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from caesura.graders.calls import Retry


@dataclass
class Received:
    path: str
    headers: Mapping[str, str]
    body: Any
    #: The client's port: equal for requests on one connection.
    connection: int


@dataclass
class Answer:
    body: Any = field(default_factory=dict[str, Any])
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    #: The connection ends in the middle of the body.
    breaks_off: bool = False

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class JudgeServer:
    """Gives `answers` one after the other; the last of them again and again."""

    def __init__(self, *answers: Answer, certificate: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers)
        self.requests: list[Received] = []
        handler = type("Handler", (_Handler,), {"judge": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        if certificate is not None:
            self._server.socket = certificate.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.judge.requests.append(Received(self.path, headers, body, self.client_address[1]))
        answer = self.judge.next_answer()
        data = answer.data
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data) + answer.breaks_off))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = answer.breaks_off

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Time:
    """A clock that only sleeping moves; it keeps how long was slept."""

    now_s: float = 1000.0
    slept_s: list[float] = field(default_factory=list[float])

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, wait_s: float) -> None:
        self.slept_s.append(wait_s)
        self.now_s += wait_s

    def retry(
        self,
        max_tries: int = 4,
        timeout_s: float = 20.0,
        total_timeout_s: float = 100.0,
        random: Callable[[], float] = lambda: 1.0,
    ) -> Retry:
        """Tries again without waiting; the back-off is as long as it can be."""
        return Retry(max_tries, timeout_s, total_timeout_s, self.clock, self.sleep, random)


def completion(content: Any = None, **changes: Any) -> dict[str, Any]:
    """A chat completion; `content` that is no text stands in it as JSON."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    message = {"role": "assistant", "content": text, "refusal": changes.pop("refusal", None)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "judge-2025-01-01",
        "choices": [{"index": 0, "message": message, "finish_reason": changes.pop("finish_reason", "stop")}],
        "usage": {
            "prompt_tokens": 50,
            "completion_tokens": 7,
            "total_tokens": 57,
            "prompt_tokens_details": {"cached_tokens": 32},
        },
    } | changes
