"""A multipart form with one file (or part of one), streamed: it goes to storage as it comes, memory does not grow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from caesura import faults
from caesura.data.validate import HEAD_BYTES
from caesura.errors import InvalidRequest, TooLarge
from caesura.faults import Point
from caesura.storage import Blob, BlobWriter

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 32
#: Of a file, before a thread writes it: the way to a thread and back takes as long as to write 64 KiB.
PIECE_BYTES = 2**20


@dataclass(slots=True)
class Upload:
    """What a form held. `head` is the beginning of the file, at most HEAD_BYTES."""

    blob: Blob
    filename: str
    head: bytes
    fields: dict[str, str]


@dataclass(slots=True)
class _Form:
    """The parser's callbacks fill this; `file_data` is what came of the file since it was last taken."""

    #: The name of the field that is the file.
    file_field: str
    fields: dict[str, str] = field(default_factory=dict[str, str])
    filename: str | None = None
    file_data: list[bytes] = field(default_factory=list[bytes])
    ended: bool = False
    _header: bytes = b""
    _value: bytes = b""
    _headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    _name: str = ""
    _in_file: bool = False
    _text: bytes = b""

    def on_part_begin(self) -> None:
        self._headers, self._text, self._header, self._value = {}, b"", b"", b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = self._name == self.file_field
        if self._in_file:
            if self.filename is not None:
                raise InvalidRequest(
                    f"The form has more than one '{self.file_field}'. Send one at a time.", param=self.file_field
                )
            self.filename = options.get(b"filename", b"upload").decode("utf-8", "replace") or "upload"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.file_data.append(data[start:end])
        elif len(self._text) + end - start > MAX_FIELD_BYTES:
            raise TooLarge(f"The form's field '{self._name}' is longer than {MAX_FIELD_BYTES} bytes.", param=self._name)
        else:
            self._text += data[start:end]

    def on_part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._text.decode("utf-8", "replace")
        if len(self.fields) > MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")

    def on_end(self) -> None:
        self.ended = True


async def receive_upload(request: Request, writer: BlobWriter, max_bytes: int, field: str = "file") -> Upload:
    """Read the whole form: its field `field` into `writer`, the others into `fields`. Nothing is kept when this raises.

    Raises InvalidRequest for a form that is not one, or without a file; TooLarge; StorageUnavailable.
    """
    form = _Form(field)
    parser = _make_parser(request, form)
    head, size = b"", 0
    async with in_threads(writer):
        async for data in _chunks(request, parser, form):
            size += len(data)
            if size > max_bytes:
                raise TooLarge(
                    f"Maximum content size limit ({max_bytes}) exceeded ({size} bytes read)",
                    param=field,
                    code="file_too_large",
                )
            if len(head) < HEAD_BYTES:
                head = (head + data)[:HEAD_BYTES]
            await run_in_threadpool(writer.write, data)
            faults.point(Point.UPLOAD_HALF)
        if not form.ended:
            raise InvalidRequest("The form broke off before its end. Please send it again.")
        if form.filename is None:
            raise InvalidRequest(
                f"Missing required parameter: '{field}'.", param=field, code="missing_required_parameter"
            )
        if size == 0:
            raise InvalidRequest(f"The {field} is empty. Send at least one byte.", param=field)
    return Upload(writer.blob, form.filename, head, form.fields)


@asynccontextmanager
async def in_threads(writer: BlobWriter) -> AsyncGenerator[None, None]:
    """The writer's context, off the event loop: the sync at the end of a large file takes seconds."""
    await run_in_threadpool(writer.__enter__)
    try:
        yield
    except BaseException as error:
        writer.__exit__(type(error), error, error.__traceback__)  # quick: it removes what was written
        raise
    await run_in_threadpool(writer.__exit__, None, None, None)


async def _chunks(request: Request, parser: MultipartParser, form: _Form) -> AsyncIterator[bytes]:
    """What has come of the file, piece by piece."""
    num_bytes = 0
    async for chunk in request.stream():
        with _telling_faults():
            parser.write(chunk)
        num_bytes += len(chunk)
        if num_bytes >= PIECE_BYTES and form.file_data:
            yield b"".join(form.file_data)
            form.file_data.clear()
            num_bytes = 0
    if form.file_data:
        yield b"".join(form.file_data)


@contextmanager
def _telling_faults() -> Generator[None, None, None]:
    try:
        yield
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read: {error}") from error


def _make_parser(request: Request, form: _Form) -> MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequest(
            f"Send a form ('multipart/form-data' with its boundary) that holds the bytes as '{form.file_field}'.",
            code="unsupported_content_type",
        )
    names = (
        "on_part_begin",
        "on_part_data",
        "on_part_end",
        "on_header_field",
        "on_header_value",
        "on_header_end",
        "on_headers_finished",
        "on_end",
    )
    with _telling_faults():
        return MultipartParser(options[b"boundary"], {name: getattr(form, name) for name in names})  # pyright: ignore[reportArgumentType]
