"""The one table from exception to answer: `{"error": {"message", "type", "param", "code"}}`, all four keys always."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from caesura.api.explain import explain
from caesura.errors import CaesuraError, InvalidRequest


def answer_error(error: CaesuraError) -> JSONResponse:
    """The answer to `error`."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return JSONResponse(error_body(error), error.status, headers)


def error_body(error: CaesuraError) -> dict[str, Any]:
    # What is our own fault is told in general words: its own would speak of the inside.
    message = error.message if error.status != 500 else (CaesuraError.__doc__ or "").strip()
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}


def install(app: FastAPI) -> None:
    """Have `app` answer every exception of an endpoint by this module."""

    async def on_error(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, CaesuraError)
        return answer_error(error)

    async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer_error(explain(error.errors()))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer_error(_from_http(request, error))

    app.add_exception_handler(CaesuraError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _from_http(request: Request, error: HTTPException) -> CaesuraError:
    method, path = request.method, request.url.path
    refused = InvalidRequest(str(error.detail))
    refused.status = error.status_code
    if error.status_code == 404:
        refused = InvalidRequest(f"Invalid URL ({method} {path})")
        refused.status = 404
    if error.status_code == 405:
        refused = InvalidRequest(
            f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
            code="method_not_supported",
        )
        refused.status = 405
    return refused
