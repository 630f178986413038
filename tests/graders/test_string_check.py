from __future__ import annotations

import asyncio

import pytest

from caesura.graders.grade import observe_text
from caesura.graders.string_check import OPERATIONS, StringCheckGrader
from caesura.graders.template import parse_template


def check(operation: str, text: str, reference: str) -> float:
    grader = StringCheckGrader(
        "check",
        parse_template("{{ sample.output_text }}", "p"),
        parse_template("{{ item.reference }}", "p"),
        OPERATIONS[operation],
    )
    return asyncio.run(grader.score(observe_text(text, {"reference": reference}))).reward


@pytest.mark.parametrize(
    ("operation", "text", "reference", "reward"),
    [
        ("eq", "Oslo", "Oslo", 1.0),
        ("eq", "Oslo", "oslo", 0.0),
        ("eq", "Oslo ", "Oslo", 0.0),
        ("eq", "", "", 1.0),
        ("ne", "Oslo", "Oslo", 0.0),
        ("ne", "Oslo", "oslo", 1.0),
        ("neq", "Oslo", "oslo", 1.0),
        ("neq", "Oslo", "Oslo", 0.0),
        ("like", "It is Oslo.", "Oslo", 1.0),
        ("like", "It is oslo.", "Oslo", 0.0),
        ("like", "Oslo", "It is Oslo.", 0.0),
        ("like", "Oslo", "", 1.0),
        ("like", "O%", "Oslo", 0.0),  # no wildcards
        ("ilike", "IT IS OSLO.", "oslo", 1.0),
        ("ilike", "STRASSE", "straße", 1.0),
        ("ilike", "Bergen", "oslo", 0.0),
    ],
)
def test_the_operations(operation: str, text: str, reference: str, reward: float) -> None:
    assert check(operation, text, reference) == reward
