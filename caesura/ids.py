"""Ids in OpenAI's forms (`ftjob-…`, `file-…`), drawn from the operating system's randomness."""

from __future__ import annotations

import secrets
import string

ALPHABET = string.ascii_letters + string.digits


def random_text(length: int) -> str:
    """`length` characters out of `[A-Za-z0-9]`."""
    text = ""
    while len(text) < length:
        # 248 is 4 · 62: bytes beyond it would make some characters likelier than others.
        drawn = secrets.token_bytes(2 * length)
        text += "".join(ALPHABET[byte % len(ALPHABET)] for byte in drawn if byte < 248)
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
