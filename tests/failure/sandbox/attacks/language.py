"""Attacks by the source itself, and by what is handed to it."""

from __future__ import annotations

from tests.failure.sandbox.attack import FAULT, Attack, harmless

_RUNTIME = r"RuntimeFault: .+"
_NUMBER = r"-?\d+\.\d+"


def _source(name: str, source: str, outcome: str = _RUNTIME, **more: object) -> Attack:
    return Attack(name, source, outcome, **more)  # type: ignore[arg-type]


_GRADE = "def grade(sample, item):\n    return 0.25\n"

_SOURCES = [
    _source("is empty", ""),
    _source("has no grade", "x = 1"),
    _source("has a grade that is a number", "grade = 5"),
    _source("has a grade that is None", "grade = None"),
    _source("has a grade without parameters", "def grade():\n    return 1.0"),
    _source("has a grade of three parameters", "def grade(a, b, c):\n    return 1.0"),
    _source("has a grade that is a coroutine", "async def grade(sample, item):\n    return 1.0"),
    _source("has a grade that is a generator", "def grade(sample, item):\n    yield 1.0"),
    _source("has a grade that is a class", "class grade:\n    def __init__(self, sample, item): pass"),
    _source(
        "has a grade that is a class of floats",
        "class grade(float):\n    def __new__(cls, sample, item): return float.__new__(cls, 0.25)",
        r"0\.25|" + _RUNTIME,
    ),
    _source("has a grade that is a lambda", "grade = lambda sample, item: 0.25", r"0\.25"),
    _source(
        "has a grade that is an object",
        "class A:\n    def __call__(self, sample, item): return 0.25\ngrade = A()",
        r"0\.25",
    ),
    _source("deletes its grade", _GRADE + "del grade"),
    _source("raises while it is imported", "1 / 0"),
    _source("returns at the top", "return 1.0"),
    _source("awaits at the top", "await x"),
    _source("is no Python", "def grade(sample, item) return 1.0"),
    _source("holds a null byte", _GRADE + "\0"),
    _source("holds a lone surrogate", "# \ud800\n" + _GRADE, FAULT + "|" + _NUMBER),
    _source("begins with a byte order mark", "\ufeff" + _GRADE, _NUMBER + "|" + _RUNTIME),
    _source("declares UTF-7", "# coding: utf-7\n+AGkAbQBwAG8AcgB0- os\n" + _GRADE, _NUMBER + "|" + _RUNTIME),
    _source("declares a coding that is none", "# coding: evil\n" + _GRADE, _NUMBER + "|" + _RUNTIME),
    _source("declares UTF-16", "# coding: utf-16\n" + _GRADE, _NUMBER + "|" + _RUNTIME),
    _source("imports braces from the future", "from __future__ import braces\n" + _GRADE),
    _source("mixes tabs and spaces", "def grade(sample, item):\n\tif 1:\n        return 1.0"),
    _source("has 10,000 brackets", "x = " + "(" * 10_000 + ")" * 10_000),
    _source("has 60,000 signs", "x = " + "-" * 60_000 + "1", FAULT),
    _source("has an attribute of an attribute, 40,000 deep", "x = a" + ".a" * 40_000, FAULT),
    _source("adds up 60,000 numbers", "x = " + "+".join("1" for _ in range(60_000)), FAULT),
    _source("has 50,000 lines", "x = 1\n" * 40_000 + _GRADE, r"0\.25|" + FAULT),
    _source("is larger than a source may be", "#" * 300_000 + "\n" + _GRADE, r"0\.25|" + FAULT),
    _source("has a number of 200,000 digits", "x = " + "1" * 200_000, FAULT),
    _source("folds huge constants", "x = ((1 << 1000) ** 1000) ** 1000\ny = 'x' * (1 << 40)", FAULT),
    _source("has f-strings in f-strings", "x = " + "f'{" * 3 + "1" + "}'" * 3, _RUNTIME),
    _source("has 100 blocks in blocks", "".join(" " * i + "if 1:\n" for i in range(101)) + " " * 101 + "x = 1"),
    _source("has a pattern that matches too much", "match 0:\n    case " + "|".join(["0"] * 20_000) + ": pass", FAULT),
    _source("deletes its builtins", "del __builtins__\n" + _GRADE, r"0\.25|" + _RUNTIME),
    _source("clears its globals", "globals().clear()\n" + _GRADE, r"0\.25|" + _RUNTIME),
    _source(
        "clears its globals in grade", "def grade(sample, item):\n    globals().clear()\n    return 0.25", r"0\.25"
    ),
    _source("calls itself by another name", "__name__ = '__main__'\n__file__ = '/etc/passwd'\n" + _GRADE, r"0\.25"),
    _source("replaces import", "import builtins\nbuiltins.__import__ = lambda *_: 1\n" + _GRADE, r"0\.25|" + FAULT),
    _source("imports what is not there", "import caesura_does_not_exist"),
    _source("imports the server", "import caesura.settings\n" + _GRADE),
    _source("imports the server's tests", "import tests.failure.sandbox.runner\n" + _GRADE),
    _source(
        "imports from its own folder",
        "open('mine.py', 'w').write('x = 0.25')\nimport sys\nsys.path.insert(0, '.')\nimport mine\n"
        "def grade(sample, item):\n    return mine.x",
        r"0\.25|" + _RUNTIME,
    ),
    _source(
        "imports another build of a module that the sandbox uses",
        "import sys\nsys.modules.pop('json', None)\nimport json\n" + _GRADE,
        r"0\.25",
    ),
    _source("imports pip", "import pip._internal\n" + _GRADE, r"0\.25|" + _RUNTIME),
    _source(
        "changes its sample and item",
        "def grade(sample, item):\n    sample.clear()\n    item.clear()\n    return 0.25",
        r"0\.25",
    ),
]


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


_ITEMS = [
    harmless(f"is handed {name}", _GRADE, r"0\.25|" + FAULT, item=item)
    for name, item in {
        "500 lists in lists": {"x": _nested(500)},
        "10,000 lists in lists": {"x": _nested(10_000)},
        "not a number": {"x": float("nan")},
        "a lone surrogate": {"x": "\ud800"},
        "null bytes": {"x": "\0" * 1000},
        "a text of 8 MB": {"x": "x" * (8 << 20)},
        "a whole number of 5,000 digits": {"x": 10**4000},
        "100,000 keys": {str(index): index for index in range(100_000)},
        "a key that says what grade is": {"grade": 1, "__builtins__": {}, "__class__": "x"},
    }.items()
]

ATTACKS: list[Attack] = [*_SOURCES, *_ITEMS]
