"""What can be said of a Python grader without running it; tests/graders/sandbox runs them."""

from __future__ import annotations

import pytest

from caesura.errors import InvalidGrader
from caesura.graders.python import check_source
from caesura.graders.sandbox import MAX_SOURCE_BYTES

GOOD = "def grade(sample, item):\n    return 1.0\n"


@pytest.mark.parametrize(
    "source",
    [
        GOOD,
        "import json\n" + GOOD,
        "def grade(sample: dict, item: dict) -> float:\n    return 0.5",
        "def grade(sample, item, /): return 1",
        "def grade(sample, item, *, weight=1.0): return weight",
        "def grade(sample, item=None): return 1",
        "class grade: pass\n" + GOOD,
        "# -*- coding: utf-8 -*-\n" + GOOD,
        GOOD + "#" * (MAX_SOURCE_BYTES - len(GOOD) - 1),
    ],
)
def test_a_source_with_a_grade_of_two_parameters_is_taken(source: str) -> None:
    check_source(source, "p")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no function 'grade'"),
        ("def score(sample, item): return 1", "no function 'grade'"),
        ("if True:\n    def grade(sample, item): return 1", "no function 'grade'"),
        ("grade = lambda sample, item: 1", "no function 'grade'"),
        ("def grade(sample, item) return 1", "line 1"),
        ("x = 1\ndef grade(sample, item):\nreturn 1", "line 3"),
        (GOOD + "return 5", "'return' outside function"),
        (GOOD + "\x00", "null bytes"),
        (GOOD + "(" * 1000 + ")" * 1000, "does not compile"),
        (GOOD + "x = " + "-" * 200_000 + "1", "does not compile"),
        ("def grade(): return 1", "exactly two"),
        ("def grade(sample): return 1", "exactly two"),
        ("def grade(sample, item, extra): return 1", "exactly two"),
        ("def grade(sample, item, extra=1): return 1", "exactly two"),
        ("def grade(*both): return 1", "exactly two"),
        ("def grade(sample, item, *more): return 1", "exactly two"),
        ("def grade(sample, item, *, weight): return 1", "exactly two"),
        ("async def grade(sample, item): return 1", "plain function"),
        (GOOD + "class grade: pass", "plain function"),
        (GOOD + "#" * (MAX_SOURCE_BYTES - len(GOOD) + 1), f"{MAX_SOURCE_BYTES + 1} bytes"),
        (GOOD + "#" + "ü" * (MAX_SOURCE_BYTES // 2), "bytes; at most"),
    ],
)
def test_other_sources_are_refused(source: str, words: str) -> None:
    with pytest.raises(InvalidGrader) as fault:
        check_source(source, "grader.source")

    assert words in fault.value.message
    assert fault.value.param == "grader.source"
    assert len(fault.value.message) < 300
