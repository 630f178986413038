"""What a skill is, and the small tools that all skills draw words with."""

import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from pretraining import words

HELD_OUT_SHARE = 50
"""One question in so many of an open skill is kept out of the corpus, for evaluate.py."""


class Item(NamedTuple):
    """A question with its answer, bare and as a sentence: the content without a style."""

    question: str
    bare: str
    sentence: str


class Skill(NamedTuple):
    """Something to ask. `progress` runs from 0 to 1 over the corpus, so that a skill can start easy."""

    name: str
    weights: tuple[float, float]
    """How often it is asked, in the first and in the second stage of the training."""
    draw: Callable[[Random, float], Item]
    closed: bool
    """Whether the questions are few and all learnt by heart (a fact table): nothing can be held out."""


def is_held_out(question: str) -> bool:
    """Whether a question of an open skill belongs to the test, decided by its text alone."""
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def with_article(word: str) -> str:
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def number_word(n: int) -> str:
    """0 to 99 in words."""
    if n < 20:
        return words.ONES[n]
    return words.TENS[n // 10] + (f"-{words.ONES[n % 10]}" if n % 10 else "")


def some_words(r: Random, low: int = 2, high: int = 5) -> list[str]:
    return r.sample(words.WORDS, r.randint(low, high))


def invented_name(r: Random) -> str:
    """A pronounceable name that is in no list, so that a model must copy it and cannot recall it."""
    syllables = (r.choice(words.ONSETS) + r.choice(words.VOWELS) for _ in range(r.choice([1, 2, 2, 3])))
    return capitalized("".join(syllables) + r.choice(words.CODAS))


def person(r: Random) -> str:
    return r.choice(words.NAMES) if r.random() < 0.4 else invented_name(r)


def city(r: Random) -> str:
    return r.choice(words.CITIES) if r.random() < 0.5 else invented_name(r)


LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = (
    LETTERS * 2 + LETTERS.upper() + "0123456789" * 2 + "".join(chr(c) for c in range(33, 127)) + "éèüöäßñç€£—…日本да"
)


def random_string(r: Random) -> str:
    """Letters, digits or signs in no order: the hardest thing to copy."""
    kind = r.random()
    alphabet = LETTERS if kind < 0.35 else LETTERS.upper() + "0123456789" if kind < 0.6 else SIGNS
    return "".join(r.choice(alphabet) for _ in range(r.randint(2, 8)))
