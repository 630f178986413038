"""The formula of a multi-grader: numbers, names, `+ - * / ^`, parentheses, a few functions; never evaluated as code.

`^` is power and binds from the right: `2^3^2` is 512 and `-2^2` is -4. Python's own grammar reads it, once every token
was seen to be one of ours; what comes of it is a tree of floats.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from caesura.errors import InvalidGrader
from caesura.graders.grade import GraderFault
from caesura.graders.syntax import parse

MAX_CHARACTERS = 10_000
#: Levels of the tree; a sum of n terms has n.
MAX_DEPTH = 200

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[-+*/^(),]))"
)


def _floor(value: float) -> float:
    return float(math.floor(value))


def _ceil(value: float) -> float:
    return float(math.ceil(value))


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": math.fabs,
    "floor": _floor,
    "ceil": _ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
#: These take any number of arguments, the others one.
_VARIADIC = frozenset({"min", "max"})
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: float.__add__,
    ast.Sub: float.__sub__,
    ast.Mult: float.__mul__,
    ast.Div: float.__truediv__,
    ast.Pow: math.pow,
}
Node = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class Formula:
    text: str
    #: The variables that it uses.
    names: frozenset[str]
    root: Node

    def evaluate(self, values: Mapping[str, float]) -> float:
        """A finite number. Raises GraderFault where there is none: a division by zero, a root of a negative number."""
        try:
            result = float(self.root(values))
        except (ArithmeticError, ValueError) as error:
            raise GraderFault("formula_parse_error", details=f"'{self.text}' has no value here: {error}.") from None
        if not math.isfinite(result):
            raise GraderFault("formula_parse_error", details=f"'{self.text}' is not a finite number here.")
        return result


def parse_formula(text: str, param: str) -> Formula:
    """Raises InvalidGrader for `param`. Surplus closing parentheses are dropped: OpenAI's own example has one."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidGrader(
            f"The formula has {len(text)} characters; at most {MAX_CHARACTERS} are allowed. Shorten it.", param=param
        )
    names: set[str] = set()
    try:
        tree = parse(_translate(text), "eval")
        assert isinstance(tree, ast.Expression)
        root = _compile(tree.body, names, MAX_DEPTH)
    except (SyntaxError, RecursionError, MemoryError) as error:
        # CPython tells of too deep a nesting by any of the three.
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise InvalidGrader(f"Invalid formula '{text[:200]}': {reason}.", param=param) from None
    return Formula(text, frozenset(names), root)


def _translate(text: str) -> str:
    """The formula in Python's spelling. Raises SyntaxError at the first token that is none of ours."""
    tokens: list[str] = []
    position, num_open = 0, 0
    text = text.rstrip()
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise SyntaxError(
                f"'{text[position:].lstrip()[:20]}' is neither a number, a name, nor one of + - * / ^ ( ) ,"
            )
        position = token.end()
        if token["sign"] == ")" and num_open == 0:
            continue
        num_open += {"(": 1, ")": -1}.get(token["sign"], 0)
        tokens.append(_spell(token))
    return " ".join(tokens)


def _spell(token: re.Match[str]) -> str:
    if token["number"] is not None:
        number = float(token["number"])
        if math.isinf(number):
            raise SyntaxError(f"{token['number']} is too large")
        return repr(number)  # `007` is no number of Python's
    if token["name"] is not None:
        return f"_{token['name']}"  # so that a grader may be called `if`, `lambda`, or `True`
    return "**" if token["sign"] == "^" else token["sign"]


def _compile(tree: ast.expr, names: set[str], depth: int) -> Node:
    if depth == 0:
        raise SyntaxError("it is nested too deeply")
    match tree:
        case ast.Constant(float(value)):
            return lambda _values: value
        case ast.Name(name):
            name = name[1:]
            names.add(name)
            return lambda values: values[name]
        case ast.UnaryOp(ast.USub(), operand):
            inner = _compile(operand, names, depth - 1)
            return lambda values: -inner(values)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _compile(operand, names, depth - 1)
        case ast.BinOp(left, sign, right) if type(sign) in _OPERATORS:
            apply = _OPERATORS[type(sign)]
            first, second = _compile(left, names, depth - 1), _compile(right, names, depth - 1)
            return lambda values: apply(first(values), second(values))
        case ast.Call(ast.Name(name), arguments, []):
            return _compile_call(name[1:], arguments, names, depth)
        case _:
            raise SyntaxError("only numbers, names, + - * / ^, parentheses and functions may stand in it")


def _compile_call(name: str, arguments: list[ast.expr], names: set[str], depth: int) -> Node:
    if name not in _FUNCTIONS:
        raise SyntaxError(f"there is no function '{name}'; there are {', '.join(_FUNCTIONS)}")
    if len(arguments) == 0 or (len(arguments) != 1 and name not in _VARIADIC):
        raise SyntaxError(f"'{name}' takes {'one or more values' if name in _VARIADIC else 'one value'}")
    function = _FUNCTIONS[name]
    inner = [_compile(argument, names, depth - 1) for argument in arguments]
    if len(inner) == 1:
        (only,) = inner
        return only if name in _VARIADIC else lambda values: function(only(values))
    return lambda values: function(*[node(values) for node in inner])
