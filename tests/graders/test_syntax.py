from __future__ import annotations

import ast
from typing import Any

import pytest

from caesura.graders import syntax


def failing(num_faults: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython fails so many times by itself."""
    parse, faults = ast.parse, [SystemError("AST constructor recursion depth mismatch")] * num_faults

    def parse_or_fail(*arguments: Any) -> ast.AST:
        if faults:
            raise faults.pop()
        return parse(*arguments)

    monkeypatch.setattr(ast, "parse", parse_or_fail)


def test_a_fault_of_pythons_own_is_not_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(2, monkeypatch)

    assert isinstance(syntax.parse("1 + 1", "eval"), ast.Expression)


def test_one_that_does_not_go_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(100, monkeypatch)

    with pytest.raises(SystemError):
        syntax.parse("1 + 1", "eval")


def test_a_fault_of_the_text_is_told_at_once() -> None:
    with pytest.raises(SyntaxError):
        syntax.parse("1 +", "eval")
