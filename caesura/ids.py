"""Ids in OpenAI's forms (`ftjob-…`, `file-…`), drawn from the operating system's randomness."""

from __future__ import annotations

import secrets
import string

ALPHABET = string.ascii_letters + string.digits
#: Byte → character. 248 is 4 · 62: the bytes from there on would make some characters likelier than others.
_SPELLED = bytes(ord(ALPHABET[byte % len(ALPHABET)]) for byte in range(256))
_UNFAIR = bytes(range(248, 256))


def random_text(length: int) -> str:
    """`length` characters out of `[A-Za-z0-9]`."""
    text = ""
    while len(text) < length:
        text += secrets.token_bytes(2 * length).translate(_SPELLED, _UNFAIR).decode()
    return text[:length]


def new_id(prefix: str) -> str:
    """`prefix` (with its separator, e.g. `ftjob-`) and 24 random characters."""
    return prefix + random_text(24)


def new_api_key() -> str:
    """A key in the form that clients expect to see."""
    return "sk-caesura-" + random_text(40)


def new_token() -> str:
    """The random token that makes a lease unforgeable."""
    return secrets.token_hex(16)
