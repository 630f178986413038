from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.errors import InvalidGrader
from caesura.graders.formula import MAX_CHARACTERS, MAX_DEPTH, parse_formula
from caesura.graders.grade import GraderFault

VALUES = {"a": 2.0, "b": 0.5, "text_score": 0.25, "if": 3.0, "True": 4.0, "min": 9.0}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("a", 2.0),
        ("1", 1.0),
        ("1.5e1", 15.0),
        (".5 + 1.", 1.5),
        ("007", 7.0),
        ("a + b * 2", 3.0),
        ("(a + b) * 2", 5.0),
        ("a - b - 1", 0.5),
        ("a / b / 2", 2.0),
        ("2^3^2", 512.0),
        ("-2^2", -4.0),
        ("2^-1", 0.5),
        ("a * -b", -1.0),
        ("+a", 2.0),
        ("--a", 2.0),
        ("0^0", 1.0),
        ("min(a, b, 7)", 0.5),
        ("max(a, b, 7)", 7.0),
        ("min(a)", 2.0),
        ("abs(b - a)", 1.5),
        ("floor(-1.5)", -2.0),
        ("ceil(1.2)", 2.0),
        ("exp(0)", 1.0),
        ("sqrt(16)", 4.0),
        ("log(exp(2))", 2.0),
        ("0.5 * text_score + 0.5 * max(a, min(b, 1))", 1.125),
        ("\n a\t+\nb ", 2.5),
        ("if + True", 7.0),
        ("min + min(1, 2)", 10.0),
        ("1e-400", 0.0),
    ],
)
def test_a_formula_has_the_value_that_algebra_gives_it(formula: str, value: float) -> None:
    assert parse_formula(formula, "p").evaluate(VALUES) == pytest.approx(value, abs=1e-12)


def test_the_names_are_those_that_are_used() -> None:
    assert parse_formula("max(a, 1) + b * a", "p").names == {"a", "b"}


def test_surplus_closing_parentheses_are_dropped() -> None:
    # As in OpenAI's own example of a multi-grader.
    formula = parse_formula("0.5 * a + 0.5 * b)", "p")

    assert formula.evaluate(VALUES) == 1.25


@pytest.mark.parametrize(
    "formula",
    [
        "",
        " ",
        "a b",
        "1 2",
        "a +",
        "* a",
        "(a",
        "a,b",
        "()",
        "(a, b)",
        "2**3",
        "7 // 2",
        "7 % 2",
        "a.b",
        "a[0]",
        "a = 1",
        "a == b",
        "a if b else a",
        "lambda: 1",
        "'text'",
        "1_000",
        "0x10",
        "5j",
        "1e999",
        "é",
        "\uff41",  # a full-width letter, which Python itself would read as `a`
        "a # comment",
        "a; b",
        "min()",
        "abs(a, b)",
        "abs()",
        "round(a)",
        "eval(a)",
        "__import__(a)",
        "a(1)",
        "min(1)(2)",
        "min(*a)",
    ],
)
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(InvalidGrader) as fault:
        parse_formula(formula, "grader.calculate_output").evaluate({"a": 1.0, "b": 1.0})

    assert fault.value.param == "grader.calculate_output"


@pytest.mark.parametrize(
    "formula",
    [
        "+".join(["1"] * (MAX_DEPTH + 2)),
        "-" * (MAX_CHARACTERS - 1) + "1",
        "(" * 5000 + "1" + ")" * 5000,
        "abs(" * 1000 + "1" + ")" * 1000,
        "1" * (MAX_CHARACTERS + 1),
        "2^" * 4000 + "2",
    ],
)
def test_formulas_beyond_their_bounds_are_refused(formula: str) -> None:
    with pytest.raises(InvalidGrader) as fault:
        parse_formula(formula, "p")

    assert len(fault.value.message) < 500


@pytest.mark.parametrize(
    "formula",
    [
        *("1 / 0", "a / (b - 0.5)", "0^-1", "sqrt(-1)", "log(0)", "log(-1)", "(-8)^(1/3)", "10^400", "9^9^9^9"),
        *("exp(1e9)", "1e300 * 1e300", "1e300 * 1e300 - 1e300 * 1e300", "floor(1e300 * 1e300)"),
    ],
)
def test_a_formula_without_a_value_is_a_flag(formula: str) -> None:
    with pytest.raises(GraderFault) as fault:
        parse_formula(formula, "p").evaluate(VALUES)

    assert list(fault.value.score.faults) == ["formula_parse_error"]
    assert formula in fault.value.score.faults["formula_parse_error"]


numbers = st.floats(min_value=0.01, max_value=100).map(lambda value: round(value, 3))
formulas = st.recursive(
    numbers.map(str) | st.sampled_from(["a", "b"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})")
        | inner.map(lambda part: f"abs({part})")
        | st.tuples(inner, inner).map(lambda parts: f"min({parts[0]},{parts[1]})")
        | inner.map(lambda part: f"-{part}")
    ),
    max_leaves=12,
)


@given(formulas)
def test_a_formula_agrees_with_python(formula: str) -> None:
    try:
        expected = float(eval(formula, {"abs": abs, "min": min, "a": 2.0, "b": 0.5}))
    except ZeroDivisionError:
        expected = math.nan
    if math.isfinite(expected):
        assert parse_formula(formula, "p").evaluate(VALUES) == pytest.approx(expected)
    else:
        with pytest.raises(GraderFault):
            parse_formula(formula, "p").evaluate(VALUES)


@given(st.text(alphabet="ab1.e+-*/^(), minx_", max_size=40))
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    try:
        formula = parse_formula(text, "p")
    except InvalidGrader:
        return
    with suppress(GraderFault):
        assert math.isfinite(formula.evaluate(dict.fromkeys(formula.names, 1.0)))
