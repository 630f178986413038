"""The files of the dashboard, as the server hands them out; what they do in a browser is in tests/dashboard."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from caesura.api.dashboard import FOLDER
from tests.api.service import HttpServer, Service, error_of

SCRIPTS = sorted(path for path in FOLDER.rglob("*.js") if "vendor" not in path.parts)
SERVED = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*"))
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@pytest.fixture
def stranger(http_server: HttpServer, idle_service: Service) -> Iterator[httpx.Client]:
    """Has no key."""
    with httpx.Client(base_url=http_server.origin) as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"/assets/{name}" for name in SERVED)])
def test_every_file_is_served_without_a_key_and_under_the_policy(stranger: httpx.Client, path: str) -> None:
    answer = stranger.get(path)

    assert answer.status_code == 200
    assert answer.content == (FOLDER / (path.removeprefix("/assets/").strip("/") or "index.html")).read_bytes()
    policy = answer.headers["content-security-policy"].split("; ")
    assert dict(part.split(" ", 1) for part in policy) == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("path", "type"),
    [("/", "text/html"), ("/assets/main.js", "text/javascript"), ("/assets/style/base.css", "text/css")],
)
def test_a_file_has_its_type_and_one_that_a_browser_has_is_not_sent_again(
    stranger: httpx.Client, path: str, type: str
) -> None:
    first = stranger.get(path)
    again = stranger.get(path, headers={"if-none-match": first.headers["etag"]})
    other = stranger.get(path, headers={"if-none-match": '"another"'})

    assert first.headers["content-type"] == f"{type}; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize(
    "name", ["none.js", "../../app.py", "%2e%2e/%2e%2e/app.py", "vendor/uplot/LICENSE", "a" * 9000]
)
def test_nothing_else_of_the_machine_is_served(stranger: httpx.Client, name: str) -> None:
    answer = stranger.get(f"/assets/{name}")

    assert answer.status_code in (401, 404)  # a client takes the dots out of some, and asks for another address
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [FOLDER / "index.html", *SCRIPTS], ids=lambda path: path.name)
def test_what_a_file_names_is_there(path: object) -> None:
    text = (FOLDER / str(path)).read_text()
    named = re.findall(r"\"/assets/([^\"]+)\"", text)

    assert not [name for name in named if name not in SERVED]
    assert not re.search(
        r"(src|href)=\"(?!/assets/)|^import .* from \"(?!/assets/)|https?://(?!www\.w3\.org/|grader\.example)",
        text,
        re.MULTILINE,
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_elements_of_text(path: object) -> None:
    text = (FOLDER / str(path)).read_text()

    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function", text
    )
    assert len(text.splitlines()) <= 500
    assert max(map(len, text.splitlines())) <= 120


def test_the_charts_library_is_there_with_its_version_and_its_licence() -> None:
    folder = FOLDER / "vendor" / "uplot"

    assert "MIT License" in (folder / "LICENSE").read_text()
    assert re.match(r"uPlot \d+\.\d+\.\d+, ", (folder / "VERSION").read_text())
