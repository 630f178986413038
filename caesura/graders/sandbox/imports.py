"""What a zygote imports before its first call: what the grader will import anyway, as a fork costs more with more."""

from __future__ import annotations

import functools
import importlib.machinery
import re

from caesura.graders.sandbox.interpreter import search_path

_NAMES = """
    deepdiff jsonschema nltk numpy pandas pydantic rapidfuzz rouge_score scipy sklearn sqlparse sympy yaml
"""
_PART_NAMES = """
    nltk.stem nltk.tokenize nltk.translate.bleu_score nltk.translate.gleu_score nltk.translate.meteor_score
    rapidfuzz.distance rapidfuzz.fuzz rapidfuzz.process rouge_score.rouge_scorer
    scipy.integrate scipy.linalg scipy.optimize scipy.signal scipy.spatial scipy.spatial.distance scipy.special
    scipy.stats sklearn.feature_extraction.text sklearn.metrics sklearn.metrics.pairwise sympy.parsing.sympy_parser
"""
_STANDARD_NAMES = """
    abc ast base64 bisect collections.abc contextlib copy csv ctypes dataclasses datetime decimal difflib
    encodings.idna enum fnmatch fractions functools hashlib heapq html html.entities html.parser inspect io itertools
    json linecache math numbers operator pprint random re secrets statistics string struct tempfile textwrap
    threading time traceback types typing unicodedata urllib.parse uuid xml.etree.ElementTree zlib
"""
#: Third-party packages: those of OpenAI's graders, and a few more.
_PACKAGES = frozenset(_NAMES.split())
#: What they do not import by themselves, and would be imported anew in every call: scipy.stats takes a second.
_PARTS = frozenset(_PART_NAMES.split())
#: Of the standard library, chosen by hand: the source is hostile, and importing some modules does something.
STANDARD = frozenset(_STANDARD_NAMES.split())

#: Lines, not syntax trees: the compiler can be brought to crash by a source, and this is the server's process.
_IMPORT_LINE = re.compile(r"^[ \t]*(?:import|from)[ \t]+(.*)", re.MULTILINE)


def modules_to_preload(source: str) -> frozenset[str]:
    """The known and installed modules that `source` names in its import lines.

    One too few or too many costs time and nothing else.
    """
    words = {word for line in _IMPORT_LINE.findall(source) for word in re.findall(r"\w+", line)}
    standard = {full for full in STANDARD if full.split(".")[0] in words}
    parts = {full for full in _PARTS if words.issuperset(full.split("."))}
    return frozenset(standard | {full for full in parts | (words & _PACKAGES) if _is_installed(full.split(".")[0])})


@functools.cache
def _is_installed(name: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(name, search_path()) is not None
