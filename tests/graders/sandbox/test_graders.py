"""What comes of a grader: its number, its fault, and nothing else of it."""

from __future__ import annotations

import asyncio
import importlib.util

import pytest

from caesura.graders.sandbox import MAX_SOURCE_BYTES, Level
from tests.graders.sandbox.bench import GOOD, Bench, grader

needs_numpy = pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return 0.25", 0.25),
        ("return 1", 1.0),
        ("return -2**70", -(2.0**70)),
        ("return True", 1.0),
        ("return len(sample['text']) / item['length']", 0.5),
        ("import re\nreturn len(re.findall('l', sample['text']))", 2.0),
        ("class Score(float): pass\n---\nreturn Score(0.75)", 0.75),
        ("class Score(float):\n    def __float__(self): return 9.0\n---\nreturn Score(0.75)", 0.75),
        ("class Score(int):\n    def __float__(self): return 9.0\n---\nreturn Score(3)", 3.0),
        ("print('x' * 10**6)\nreturn 1.0", 1.0),
        ("import threading\nt = threading.Thread(target=sample.clear)\nt.start(); t.join()\nreturn len(sample)", 0.0),
        (
            "from dataclasses import dataclass\nimport typing\n@dataclass\nclass P:\n    x: 'float'\n---\n"
            "return len(typing.get_type_hints(P)) + P(0.5).x",
            1.5,
        ),
        ("import urllib.parse, encodings.idna, statistics\nreturn statistics.mean([1, 2])", 1.5),
    ],
)
def test_a_number_comes_back(bench: Bench, runner: asyncio.Runner, body: str, value: float) -> None:
    result = runner.run(bench.run(grader(body), {"text": "Hello"}, {"length": 10}))

    assert type(result) is float
    assert result == value


@needs_numpy
@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("np.float64(0.5)", 0.5),
        ("np.float32(0.5)", 0.5),
        ("np.float16(0.5)", 0.5),
        ("np.int64(3)", 3.0),
        ("np.uint8(3)", 3.0),
        ("np.bool_(True)", 1.0),
        ("np.array(0.5)", 0.5),
        ("np.mean(np.arange(4))", 1.5),
        ("np.linalg.norm(np.ones((300, 300)) @ np.ones((300, 300)))", 90000.0),
    ],
)
def test_scalars_of_numpy_are_numbers(bench: Bench, runner: asyncio.Runner, expression: str, value: float) -> None:
    assert runner.run(bench.run(grader(f"import numpy as np\n---\nreturn {expression}"))) == pytest.approx(value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "type NoneType"),
        ("return '1.0'", "type str"),
        ("return [1.0]", "type list"),
        ("return 1j", "type complex"),
        ("return float('nan')", "nan, not a finite number"),
        ("return float('-inf')", "-inf, not a finite number"),
        ("return 10**400", "too large"),
        ("return 1 << (8 * 10**8)", "too large"),
        ("class Lie:\n    __class__ = float\n---\nreturn Lie()", "type Lie"),
        ("class Lie:\n    def __float__(self): return 1.0\n---\nreturn Lie()", "type Lie"),
        ("from fractions import Fraction\nreturn Fraction(1, 2)", "type Fraction"),
        ("class Deep:\n    pass\nDeep.__name__ = 'x' * 10**6\n---\nreturn Deep()", "type xxx"),
    ],
)
def test_anything_but_a_finite_number_is_the_graders_fault(
    bench: Bench, runner: asyncio.Runner, body: str, said: str
) -> None:
    details = runner.run(bench.fault(grader(body)))

    assert said in details
    assert details.startswith("grade() returned ")
    assert len(details) < 300


@needs_numpy
@pytest.mark.parametrize("expression", ["np.float64('nan')", "np.array([1.0, 2.0])", "np.complex64(1)", "np.str_('1')"])
def test_what_is_no_number_in_numpy_is_none_here(bench: Bench, runner: asyncio.Runner, expression: str) -> None:
    assert runner.run(bench.fault(grader(f"import numpy as np\n---\nreturn {expression}")))


def test_the_details_show_the_graders_own_lines_and_no_others(bench: Bench, runner: asyncio.Runner) -> None:
    body = "import json\ndef parse(text):\n    return json.loads(text)\n---\nreturn parse(sample['text'])"
    details = runner.run(bench.fault(grader(body), {"text": "{"}))

    assert details.splitlines()[0] == "Traceback (most recent call last):"
    assert details.count('File "grader.py"') == details.count("File ") == 2
    assert "return json.loads(text)" in details
    assert details.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting")
    assert "caesura" not in details


def test_the_details_tell_the_causes(bench: Bench, runner: asyncio.Runner) -> None:
    details = runner.run(bench.fault(grader("try:\n    1 / 0\nexcept Exception as e:\n    raise KeyError('k') from e")))

    assert details.index("ZeroDivisionError") < details.index("direct cause") < details.index("KeyError: 'k'")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "no function grade"),
        ("grade = 1", "no function grade"),
        ("def grade(sample): return 1", "TypeError"),
        ("def grade(sample, item:", "SyntaxError"),
        ("return 1", "SyntaxError"),
        ("def grade(s, i): return 1\0", "null bytes"),
        ("def grade(s, i): return '\udcff'", "surrogates not allowed"),
        ("raise SystemExit(0)", "SystemExit"),
        (grader("import sys\nsys.exit(3)"), "SystemExit: 3"),
        (grader("raise KeyboardInterrupt"), "KeyboardInterrupt"),
        (grader("raise GeneratorExit"), "GeneratorExit"),
        (grader("return grade(sample, item)"), "RecursionError"),
        (grader("return [0] * 10**10"), "MemoryError"),
        (grader("x = []\nwhile True: x.append(bytes(10**6))"), "MemoryError"),
        (grader("import nothing_of_that_name"), "ModuleNotFoundError"),
        (grader("class E(Exception):\n    def __str__(self): raise SystemExit\n---\nraise E"), "E"),
        ("async def grade(s, i): return 1", "type coroutine"),
        ("def grade(s, i): yield 1", "type generator"),
        (grader("import os\nos.fork()"), "PermissionError: [Errno 1]"),
    ],
)
def test_its_failing_is_told_in_its_own_words(bench: Bench, runner: asyncio.Runner, source: str, said: str) -> None:
    assert said in runner.run(bench.fault(source))


def test_long_details_are_shortened_in_the_middle(bench: Bench, runner: asyncio.Runner) -> None:
    details = runner.run(bench.fault(grader("raise ValueError('a' + 'x' * 10**6 + 'z')")))

    assert len(details) <= 4000
    assert "ValueError: ax" in details
    assert details.rstrip().endswith("xz")
    assert "[...]" in details


def test_a_source_that_is_too_large_is_refused_before_it_runs(bench: Bench, runner: asyncio.Runner) -> None:
    full = GOOD + "#" * (MAX_SOURCE_BYTES - len(GOOD))

    assert runner.run(bench.run(full, {"value": 1})) == 1.0
    assert f"at most {MAX_SOURCE_BYTES}" in runner.run(bench.fault(full + "#"))
    assert "bytes" in runner.run(bench.fault(GOOD + "# " + "ä" * (MAX_SOURCE_BYTES // 2)))


def test_samples_arrive_as_they_are(bench: Bench, runner: asyncio.Runner) -> None:
    sample = {"text": "ä\0\u2028\U0001f600", "none": None, "deep": [{"a": [1, 2.5, True]}], "big": "x" * 10**6}
    body = "return sample == {**item, 'big': 'x' * 10**6}"

    assert runner.run(bench.run(grader(body), sample, {key: sample[key] for key in ("text", "none", "deep")})) == 1.0


@pytest.mark.parametrize(
    "first",
    [
        "global left\nleft = 1\nreturn 0",
        "import builtins\nbuiltins.left = 1\nreturn 0",
        "import json\njson.loads = json.dumps = None\nreturn 0",
        "import sys\nsys.modules['json'] = None\nreturn 0",
        "import os\nos.environ['left'] = '1'\nos.chdir('/')\nos.umask(0)\nreturn 0",
        "import math\nmath.isfinite = lambda x: x == 0\nreturn 0",
        "import sys\nsys.setrecursionlimit(60)\nreturn 0",
    ],
)
def test_nothing_is_left_for_the_next_call(bench: Bench, runner: asyncio.Runner, first: str) -> None:
    second = (
        "import builtins, json, os\nassert 'left' not in globals()\nassert not hasattr(builtins, 'left')\n"
        "assert 'left' not in os.environ\nassert os.umask(0) == 0o22\nassert os.getcwd() == os.environ['HOME']\n"
        "def deep(n): return n and deep(n - 1)\ndeep(500)\nreturn json.loads('1')"
    )
    both = "import builtins, json, os, sys, math\n---\n"  # so that one process serves both

    runner.run(bench.run(grader(both + first)))
    assert runner.run(bench.run(grader(both + second))) == 1.0


def test_hashes_of_strings_are_the_same_in_every_call(bench: Bench, runner: asyncio.Runner) -> None:
    source = grader("return hash('x') % 1000")

    assert runner.run(bench.run(source)) == runner.run(bench.run(source))


def test_the_environment_is_small_and_harmless(
    bench: Bench, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    details = runner.run(bench.fault(grader("import os, sys\nraise ValueError(sorted(os.environ), sys.argv)")))

    names = ["HOME", "LANG", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONHASHSEED"]
    names += [*(["TMPDIR"] if bench.level is Level.STRONG else []), "TZ"]
    assert f"ValueError: ({sorted(names)!r}, ['-c'])" in details


def test_only_the_reply_is_open(bench: Bench, runner: asyncio.Runner) -> None:
    body = (
        "import os\nfound = []\n"
        "for fd in range(64):\n    try: os.fstat(fd); found.append(fd)\n    except OSError: pass\n"
    )

    assert "ValueError: [0, 1, 2, 3]" in runner.run(bench.fault(grader(body + "raise ValueError(found)")))


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ('{"value": NaN}', "bad reply"),
        ('{"value": 1.0}{"value": 2.0}', "bad reply"),
        ("x" * 10**6, "bad reply"),
        ("", "ended without a reply"),
    ],
)
def test_a_forged_reply_that_is_no_number_is_a_fault(
    bench: Bench, runner: asyncio.Runner, forged: str, said: str
) -> None:
    body = "import os\ntry: os.write(3, sample['forged'].encode())\nfinally: os._exit(0)"

    assert runner.run(bench.fault(grader(body), {"forged": forged})) == said


def test_a_forged_reply_is_not_taken_while_its_process_runs(hasty_bench: Bench, runner: asyncio.Runner) -> None:
    body = "import os, time\nos.write(3, b'{\"value\": 9.0}')\ntime.sleep(60)"

    assert runner.run(hasty_bench.fault(grader(body))) == "timeout"


def test_a_grader_that_puts_the_check_aside_gets_no_infinity_through(bench: Bench, runner: asyncio.Runner) -> None:
    body = "import math\nmath.isfinite = lambda x: True\nreturn math.inf"

    assert runner.run(bench.fault(grader(body))) == "bad reply"
