"""Python's grammar, for sources and formulas."""

from __future__ import annotations

import ast
from typing import Literal

#: Of one text. The fault depends on when the garbage collector runs, so that two in a row are rare.
_MAX_TRIES = 5


def parse(text: str, mode: Literal["exec", "eval"]) -> ast.AST:
    """`ast.parse`, tried again where CPython itself fails at it (python/cpython#106905: a collection in its middle
    that parses too, as the printing of a traceback does, gives a SystemError; not mended in every 3.11 and 3.12).

    Raises SyntaxError, ValueError, RecursionError or MemoryError for the text.
    """
    for _ in range(_MAX_TRIES - 1):
        try:
            return ast.parse(text, "grader.py", mode)
        except SystemError:
            continue
    return ast.parse(text, "grader.py", mode)
