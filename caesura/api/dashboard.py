"""The dashboard at `/`: pages that work over the API alone, as any other client. Its files hold nothing of anybody."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from caesura.api.explain import quote
from caesura.api.route import Route
from caesura.errors import NotFound

router = APIRouter(route_class=Route)

FOLDER = Path(__file__).parent.parent / "assets" / "dashboard"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Scripts, styles and requests of this server's own and no others: whatever text comes into a page, nothing runs that
#: is not one of these files, and nothing is sent elsewhere.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    # Kept, and asked about each time: after an upgrade nobody has one of the old files among the new.
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    type: str
    etag: str


@cache
def _assets() -> dict[str, _Asset]:
    """Every file by its path in the folder: what is not among them is not found, whatever it is called."""
    assets: dict[str, _Asset] = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            assets[path.relative_to(FOLDER).as_posix()] = _Asset(content, _TYPES[path.suffix], etag)
    return assets


@router.get("/", response_model=None)
async def page(request: Request) -> Response:
    return _answer("index.html", request)


@router.get("/assets/{path:path}", response_model=None)
async def asset(path: str, request: Request) -> Response:
    return _answer(path, request)


def _answer(path: str, request: Request) -> Response:
    found = _assets().get(path)
    if found is None:
        raise NotFound(f"The dashboard has no file {quote(path)}.")
    headers = _HEADERS | {"etag": found.etag}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.type, headers=headers)
