"""How the commands print: for people, or as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Tables are at least so wide: a narrow terminal breaks lines itself; broken by the table, no id could be copied.
TABLE_WIDTH = 180
#: A terminal would obey them; whatever a name or an answer holds, it is only shown.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def make_console(stderr: bool = False) -> Console:
    """Made for each use: standard output may have been exchanged since."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)


def plain(value: Any) -> str:
    """What may be printed to a terminal; newlines and tabs stay."""
    return _CONTROLS.sub("�", str(value))


def say(text: str) -> None:
    make_console().print(Text(plain(text)))


def say_aside(text: str) -> None:
    """On standard error: it is no part of what was asked for."""
    make_console(stderr=True).print(Text(plain(text)))


def print_json(value: Any) -> None:
    """One document, in one line. Of ASCII: nothing in it can steer a terminal."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else plain(cell), no_wrap=True) for cell in row))
    console = make_console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """A name and its value a line, but for those that have none."""
    told = [(name, value) for name, value in fields if value is not None]
    width = max(len(name) for name, _ in told)
    for name, value in told:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        say(f"{name:<{width}}  {text}")


def spell_time(unix_s: int | None) -> str | None:
    return None if unix_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def spell_bytes(number: int) -> str:
    size, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def spell_seconds(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
