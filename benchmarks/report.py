"""Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = [":--", *["--:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))


def section(title: str, *paragraphs: str) -> str:
    return "\n\n".join((f"## {title}", *paragraphs)) + "\n"


def number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def bar(claim: str, holds: bool) -> str:
    """One line for a bar that the project set itself."""
    return f"* {claim}: **{'reached' if holds else 'NOT reached'}**"
