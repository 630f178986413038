"""HTTP as uvicorn speaks it, with a bound to what comes before a body: its fast parser keeps headers of any length."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: The first line and all headers of a request, about: what comes with the last of them counts too.
MAX_HEAD_BYTES = 64 * 1024
_REFUSAL = (
    b'{"error":{"message":"The headers of the request are too long: at most 65536 bytes together.",'
    b'"type":"invalid_request_error","param":null,"code":null}}'
)
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    #: A request has begun, and its headers have not ended.
    _is_in_head = False
    _num_head_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._num_head_bytes > MAX_HEAD_BYTES:
            return  # refused, and closing
        super().data_received(data)
        if not self._is_in_head:
            self._num_head_bytes = 0
            return
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_ANSWER % (len(_REFUSAL), _REFUSAL))
            self.transport.close()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
