"""The API as the commands ask it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from caesura import __version__
from caesura.commands.address import Address
from caesura.commands.problems import Refused, Unreachable

TIMEOUT = httpx.Timeout(300.0, connect=5.0)
#: What is healed by time (429, 503) is asked for again this often, each time after as long as the answer says.
MAX_RETRIES = 20
LONGEST_WAIT_S = 5.0

Body = dict[str, Any]


class Client:
    """Every method raises Refused with the server's own words, and Unreachable; so does the making of one."""

    def __init__(self, address: Address, timeout: httpx.Timeout = TIMEOUT) -> None:
        self._url = address.url
        headers = {"authorization": f"Bearer {address.key}", "user-agent": f"caesura/{__version__}"}
        try:
            self._http = httpx.Client(base_url=address.url + "/", headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise Unreachable(f"'{address.url}' is no address of a server: {error}.") from error

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None, *, max_retries: int = MAX_RETRIES) -> Any:
        return self._json("GET", path, params=params, max_retries=max_retries)

    def post(self, path: str, body: Body | None = None) -> Any:
        return self._json("POST", path, json={} if body is None else body)

    def upload(self, path: str, fields: dict[str, str], file: tuple[str, Any]) -> Any:
        """Once: what was sent of the file is gone."""
        with self.open("POST", path, max_retries=0, data=fields, files={"file": file}) as response:
            return self._read(response)

    def delete(self, path: str) -> Any:
        return self._json("DELETE", path)

    def pages(self, path: str, params: Mapping[str, Any], limit: int, page: int = 100) -> Iterator[Body]:
        """The first `limit` items of a list, page by page."""
        after: str | None = None
        while limit > 0:
            asked = {**params, "limit": min(limit, page)} | ({} if after is None else {"after": after})
            answer = self.get(path, asked)
            yield from answer["data"]
            limit -= len(answer["data"])
            if not answer.get("has_more"):
                return
            after = answer["data"][-1]["id"]

    @contextmanager
    def open(
        self, method: str, path: str, *, max_retries: int = MAX_RETRIES, **request: Any
    ) -> Generator[httpx.Response, None, None]:
        """An answer whose body is still to be read. Where reading it fails, Unreachable rises from the block."""
        try:
            for num_retries in range(max_retries + 1):
                with self._http.stream(method, path, **request) as response:
                    if response.is_success:
                        yield response
                        return
                    response.read()
                    if response.status_code not in (429, 503) or num_retries == max_retries:
                        raise self._refusal(response)
                    wait_s = min(float(response.headers.get("retry-after") or 1), LONGEST_WAIT_S)
                time.sleep(wait_s)
        except httpx.TransportError as error:
            told = str(error) or type(error).__name__
            raise Unreachable(f"The server at {self._url} cannot be reached: {told}. Is it running there?") from error

    def _json(self, method: str, path: str, **request: Any) -> Any:
        with self.open(method, path, **request) as response:
            return self._read(response)

    def _read(self, response: httpx.Response) -> Any:
        response.read()
        if response.status_code == 204:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise self._foreign(response) from error

    def _refusal(self, response: httpx.Response) -> Refused | Unreachable:
        try:
            told = response.json()["error"]
            message, param = str(told["message"]), told["param"]
            return Refused(message if param is None or param in message else f"{message} ({param})")
        except (ValueError, KeyError, TypeError):
            return self._foreign(response)

    def _foreign(self, response: httpx.Response) -> Unreachable:
        return Unreachable(
            f"What answers at {self._url} is no server of this kind (status {response.status_code}). Check the "
            "address; it ends in /v1."
        )


def escaped(name: str) -> str:
    """As a part of a path: names of models may hold `/`."""
    return quote(name, safe=":")
