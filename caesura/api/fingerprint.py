"""A request's body as it comes, and the hash by which two bodies are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from caesura.errors import TooLarge


class HashedBody:
    """`receive` in the place of the connection's own; what came through it is hashed, nothing is held in memory."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        kind, options = parse_options_header(headers.get("content-type"))
        boundary = options.get(b"boundary") if kind == b"multipart/form-data" else None
        self._hash = _BytesHash() if boundary is None else _FormHash(boundary)
        self._has_ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._hash.update(message.get("body", b""))
            self._has_ended = not message.get("more_body", False)
        return message

    async def read(self) -> str | None:
        """The body's fingerprint, once the rest of it has come. Raises ClientDisconnect, TooLarge."""
        while not self._has_ended:
            try:
                message = await self.receive()
            except HTTPException as error:  # the front's limit
                raise TooLarge(str(error.detail)) from error
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
        return self.fingerprint

    @property
    def fingerprint(self) -> str | None:
        """None where the body was not read to its end, or is a form that cannot be read."""
        return self._hash.digest() if self._has_ended else None


class _BytesHash:
    """Of the bytes as they are."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def digest(self) -> str | None:
        return self._hash.hexdigest()


class _FormHash:
    """Of a form's parts, each by its headers and its bytes: clients draw a new boundary for every attempt."""

    def __init__(self, boundary: bytes) -> None:
        self._hash = hashlib.sha256()
        self._part = hashlib.sha256()
        self._headers: list[tuple[bytes, bytes]] = []
        self._field = self._value = b""
        self._is_readable = self._has_ended = False
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin_part,
            "on_part_data": self._add_to_part,
            "on_part_end": self._end_part,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # pyright: ignore[reportArgumentType]
            self._is_readable = True
        except FormParserError:
            pass

    def update(self, data: bytes) -> None:
        try:
            if self._is_readable:
                self._parser.write(data)
        except FormParserError:
            self._is_readable = False

    def digest(self) -> str | None:
        return self._hash.hexdigest() if self._is_readable and self._has_ended else None

    def _begin_part(self) -> None:
        self._headers, self._part = [], hashlib.sha256()

    def _add_to_part(self, data: bytes, start: int, end: int) -> None:
        self._part.update(memoryview(data)[start:end])

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers.append((self._field.lower(), self._value))
        self._field = self._value = b""

    def _end_part(self) -> None:
        self._hash.update(repr(self._headers).encode() + self._part.digest())

    def _end(self) -> None:
        self._has_ended = True
