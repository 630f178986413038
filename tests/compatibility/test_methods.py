"""docs/compatibility.md is what comes of these calls. With `WRITE_COMPATIBILITY=1` it is written anew."""

from __future__ import annotations

import os
from pathlib import Path

from tests.api.service import Service
from tests.compatibility import clients
from tests.compatibility.methods import METHODS

PAGE = Path(__file__).parent.parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- made by tests/compatibility -->\n", "<!-- to here -->\n"
COLUMNS = ("`openai` Python", "async", "strict", "`AzureOpenAI` Python", "`openai` Node", "`AzureOpenAI` Node")
PYTHON = (clients.by_sync, clients.by_async, clients.by_strict, clients.by_azure)


def test_every_method_is_answered_as_the_page_says(service: Service, tmp_path: Path) -> None:
    told = {method.name: [ask(service, method) for ask in PYTHON] for method in METHODS}
    assert {outcome for outcomes in told.values() for outcome in outcomes} == {"works"}, told
    # Where OpenAI's client for Node is not installed, `make .venv/installed-node` installs it.
    num_columns = len(COLUMNS) if clients.has_node() else len(PYTHON)
    if clients.has_node():
        common = [method for method in METHODS if not method.is_python_only]
        for azure in (False, True):
            outcomes_of_node = clients.by_node(service, common, tmp_path, azure=azure)
            by_node = dict(zip((method.name for method in common), outcomes_of_node, strict=True))
            assert set(by_node.values()) == {"works"}, by_node
            for name, outcomes in told.items():
                outcomes.append(by_node.get(name, "no such method"))
    head, rest = PAGE.read_text().split(BEGIN)
    shown, tail = rest.split(END)
    if os.environ.get("WRITE_COMPATIBILITY"):
        PAGE.write_text(f"{head}{BEGIN}{table(told)}{END}{tail}")
    else:
        assert cells(table(told), num_columns) == cells(shown, num_columns), "write it anew, and read what has changed"


def table(told: dict[str, list[str]]) -> str:
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(outcomes)} |" for name, outcomes in told.items()]
    return "\n".join(lines) + "\n"


def cells(table: str, num_columns: int) -> list[list[str]]:
    return [line.split(" | ")[: num_columns + 1] for line in table.splitlines()[2:]]
