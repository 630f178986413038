from __future__ import annotations

import pytest

from caesura.graders.sandbox.imports import modules_to_preload


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("def grade(s, i): return 1", set()),
        ("import json", {"json"}),
        ("import re, json as j", {"re", "json"}),
        ("from difflib import SequenceMatcher", {"difflib"}),
        ("def grade(s, i):\n\timport math", {"math"}),
        ("from urllib.parse import quote", {"urllib.parse"}),
        ("import numpy as np\nfrom numpy.linalg import norm", {"numpy"}),
        ("from rapidfuzz import fuzz", {"rapidfuzz", "rapidfuzz.fuzz"}),
        ("from nltk.translate.gleu_score import sentence_gleu", {"nltk", "nltk.translate.gleu_score"}),
        ("import antigravity, subprocess, caesura", set()),
        ("import nothing_of_that_name", set()),
        ("x = 'not a syntax ) tree\nimport json", {"json"}),
        ("# json\nx = 'import json'", set()),
    ],
)
def test_what_a_source_imports_is_preloaded_if_it_is_known(source: str, modules: set[str]) -> None:
    assert modules_to_preload(source) == modules


def test_a_source_made_to_crash_a_parser_is_only_read() -> None:
    assert modules_to_preload("import json\n" + "(" * 250_000) == {"json"}
    assert modules_to_preload("import " + "," * 250_000) == set()
