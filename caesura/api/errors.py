"""The one table from exception to answer: `{"error": {"message", "type", "param", "code"}}`, all four keys always.

`CaesuraError` itself rises to `front`, which answers it here: only there is the request's id known, for the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from caesura.api.explain import explain
from caesura.errors import CaesuraError, InvalidRequest


def answer_error(error: CaesuraError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to `error`."""
    told = dict(headers or {})
    if error.retry_after_s is not None:
        told["retry-after"] = str(error.retry_after_s)
    if error.should_retry is not None:
        told["x-should-retry"] = "true" if error.should_retry else "false"
    # "replace": JSON can spell half a surrogate pair, which UTF-8 cannot hold, and the message may quote it.
    body = json.dumps(error_body(error), ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, error.status, told, media_type="application/json")


def error_body(error: CaesuraError) -> dict[str, Any]:
    # What is our own fault is told in general words: its own would speak of the inside.
    message = error.message if error.status != 500 else (CaesuraError.__doc__ or "").strip()
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}


def install(app: FastAPI) -> None:
    """Have `app` answer what the framework raises by this module."""

    async def on_invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer_error(explain(error.errors()))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer_error(_from_http(request, error), error.headers)

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _from_http(request: Request, error: HTTPException) -> CaesuraError:
    method, path = request.method, request.state.asked_path
    refused = InvalidRequest(str(error.detail))
    if error.status_code == 404:
        refused = InvalidRequest(f"Invalid URL ({method} {path})")
    if error.status_code == 405:
        refused = InvalidRequest(
            f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
            code="method_not_supported",
        )
    refused.status = error.status_code
    return refused
