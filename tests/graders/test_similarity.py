"""Scores beside the libraries' own, by hand, and of whatever a model may write."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import get_args

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import meteor_score
from rapidfuzz import fuzz
from rouge_score import rouge_scorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

from caesura.graders.similarity import MAX_CHARACTERS, Metric, TooLong, similarity
from caesura.graders.wordnet import load_wordnet

METRICS: tuple[Metric, ...] = get_args(Metric)

PAIRS = [
    ("", ""),
    ("", "something"),
    ("something", ""),
    (" ", " "),
    (" \n\t ", ""),
    ("a", "a"),
    ("a", "b"),
    ("yes", "Yes"),
    ("Yes.", "yes"),
    ("42", "42"),
    ("3.14", "3.1415"),
    ("1,000,000 people", "1000000 people"),
    ("two words", "words two"),
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("The cat sat on the mat.", "A cat is sitting on the mat."),
    ("the the the the the the the", "the cat is on the mat"),
    ("the cat is on the mat", "the the the the the the the"),
    ("It was cold. We went home.", "It was cold. They left for home."),
    ("he bought a fast car", "he purchased a quick automobile"),
    ("children were playing", "kids play"),
    ("The mice have eaten the cheese", "a mouse ate some cheese"),
    ("She's happier than her sister", "her sister is less happy"),
    ("begin the job", "start the task"),
    ("running runs ran run", "run runner running"),
    ("Paris", "The capital of France is Paris."),
    ("The capital of France is Paris.", "Paris"),
    ("Hello, world!", "hello world"),
    ("!!! ??? ...", "... ??? !!!"),
    ("!", "?"),
    ("(a) [b] {c} <d>", "a b c d"),
    ('"quoted" & <tagged>', "&quot;quoted&quot; &amp; &lt;tagged&gt;"),
    ("state-of-the-art 3-4 days", "state of the art in 3 to 4 days"),
    ("semi-\ncolon", "semicolon"),
    ("snake_case and CamelCase", "snake case and camel case"),
    ("naïve café", "naive cafe"),
    ("naïve café", "nai\u0308ve cafe\u0301"),
    ("Привет, мир!", "Привет мир"),
    ("我喜欢猫", "我喜欢狗"),
    ("猫 と 犬", "犬 と 猫"),
    ("😀 😃 fine", "😃 fine 😀"),
    ("İstanbul STRASSE ﬁn", "istanbul straße fin"),
    ("\ud800 broken", "broken \ud800"),
    ("\x00\x01 control", "control"),
    ("def f(x):\n    return x + 1", "def f(y):\n    return y + 1"),
    ('{"answer": 12, "unit": "kg"}', '{"unit": "kg", "answer": 12.0}'),
    ("y" * 3000, "y" * 2999 + "s"),
    ("la " * 200, "la la la"),
    (" ".join(f"word{i}" for i in range(300)), " ".join(f"word{i}" for i in range(0, 600, 2))),
    ("a b c d e f g h " * 60, "h g f e d c b a " * 60),
    ("<skipped>", "<skipped>"),
]

#: Of a text that a model might write, and of any characters at all, halves of surrogate pairs among them.
TEXTS = st.one_of(
    st.lists(st.sampled_from(["The", "the", "cat", "cats", "sat", ",", ".", "3.5", "buy", "é", "猫"])).map(" ".join),
    st.text(st.characters(exclude_categories=())),
)


def tokens(text: str) -> list[str]:
    return Tokenizer13a()(text).split()


def rouge(kind: str, text: str, reference: str) -> float:
    return rouge_scorer.RougeScorer([kind]).score(reference, text)[kind].fmeasure


#: The libraries as their documentations use them.
LIBRARIES = {
    "fuzzy_match": lambda text, reference: fuzz.WRatio(text, reference) / 100,
    "bleu": lambda text, reference: sacrebleu.sentence_bleu(text, [reference]).score / 100,
    "gleu": lambda text, reference: sentence_gleu([tokens(reference)], tokens(text)),
    "meteor": lambda text, reference: meteor_score([tokens(reference)], tokens(text), wordnet=load_wordnet()),
    **{f"rouge_{n}": partial(rouge, f"rouge{n}") for n in range(1, 6)},
    "rouge_l": partial(rouge, "rougeL"),
}

BY_HAND: list[tuple[Metric, str, str, float]] = [
    # 3 of 4 letters in order in both: 2 · 3 / 8.
    ("fuzzy_match", "abcd", "abce", 0.75),
    # The same words in another order: 0.95 for sorting them.
    ("fuzzy_match", "b a", "a b", 0.95),
    # 5/6 words, 3/5 pairs, 2/4 triples, 1/3 fours: (5/6 · 3/5 · 2/4 · 1/3)^(1/4) = (1/12)^(1/4).
    ("bleu", "the cat sat on a mat", "the cat sat on the mat", 0.537285),
    # All words and pairs match, there is nothing longer; 2 words for 3: e^(1 - 3/2).
    ("bleu", "the cat", "the cat sat", 0.606531),
    # No brevity penalty this way round: (2/3 · 1/2 · 1/2 of 1/1)^(1/3) = (1/6)^(1/3), by exponential smoothing.
    ("bleu", "the cat sat", "the cat", 0.550321),
    # "the", "cat" and "the cat" of six n-grams each.
    ("gleu", "the cat sat", "the cat ran", 0.5),
    # 1 of the 3 + 2 + 1 n-grams of the longer.
    ("gleu", "the", "the cat sat", 1 / 6),
    # All 6 tokens in 1 chunk: 1 - 0.5 · (1/6)³.
    ("meteor", "the cat sat on the mat", "the cat sat on the mat", 0.997685),
    # "car" and "auto" are synonyms: 3 tokens in 1 chunk.
    ("meteor", "a red car", "a red auto", 1 - 0.5 / 27),
    # So are "buy" and "purchase", but nltk looks for the stem, "purchas": 2 of 3 tokens in 2 chunks, 2/3 · (1 - 0.5).
    ("meteor", "we buy cars", "we purchase cars", 1 / 3),
    # Precision 1, recall 1/2: 0.5 / (0.9 · 1 + 0.1 · 0.5) = 0.526316; 2 tokens in 1 chunk: 1 - 0.5 · (1/2)³ of it.
    ("meteor", "red green", "red green blue grey", 0.493421),
    # "a" and "b" of 4 and of 3: 2 · 2 / 7.
    ("rouge_1", "a b c d", "a b e", 4 / 7),
    # "a b" of 3 pairs and of 2: 2 · 1 / 5.
    ("rouge_2", "a b c d", "a b e", 0.4),
    ("rouge_3", "a b c d", "a b c e", 0.5),
    ("rouge_4", "a b c d e", "x a b c d", 0.5),
    # One of 1 and of 2: 2 · 1 / 3.
    ("rouge_5", "a b c d e", "a b c d e f", 2 / 3),
    # "a b c" is in both, in order: 2 · 3 / 8.
    ("rouge_l", "a x b y c", "a b c", 0.75),
    # Of "a b" reversed only one remains in order: 2 · 1 / 4.
    ("rouge_l", "b a", "a b", 0.5),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_a_score_is_the_librarys(metric: Metric, text: str, reference: str) -> None:
    assert similarity(metric, text, reference) == pytest.approx(LIBRARIES[metric](text, reference), abs=1e-6)


@pytest.mark.parametrize(("metric", "text", "reference", "score"), BY_HAND)
def test_a_score_is_the_one_computed_by_hand(metric: Metric, text: str, reference: str, score: float) -> None:
    assert similarity(metric, text, reference) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("text", "reference"), [("", ""), ("", "a b c d e"), ("a b c d e", ""), ("", " ")])
def test_an_empty_text_scores_0(metric: Metric, text: str, reference: str) -> None:
    assert similarity(metric, text, reference) == 0


@pytest.mark.parametrize("metric", METRICS)
@given(text=TEXTS, reference=TEXTS)
@settings(deadline=None)
def test_any_two_texts_have_a_score_from_0_to_1(metric: Metric, text: str, reference: str) -> None:
    assert 0 <= similarity(metric, text, reference) <= 1


@given(text=TEXTS)
def test_a_text_scores_1_beside_itself_by_fuzzy_match(text: str) -> None:
    assert similarity("fuzzy_match", text, text) == (1 if text else 0)


@pytest.mark.parametrize("metric", ["bleu", "gleu"])
@given(text=TEXTS)
def test_a_text_with_a_token_scores_1_beside_itself_by_bleu_and_gleu(metric: Metric, text: str) -> None:
    assert similarity(metric, text, text) == pytest.approx(1 if tokens(text) else 0)


@pytest.mark.parametrize(("metric", "n"), [*((f"rouge_{n}", n) for n in range(1, 6)), ("rouge_l", 1)])
@given(num_words=st.integers(0, 12))
def test_a_text_of_n_words_scores_1_beside_itself_by_rouge_n(metric: Metric, n: int, num_words: int) -> None:
    text = " ".join(["word"] * num_words)

    assert similarity(metric, text, text) == (1 if num_words >= n else 0)


@given(num_tokens=st.integers(1, 30))
def test_meteor_takes_its_penalty_for_fragments_from_equal_texts_too(num_tokens: int) -> None:
    text = " ".join(["word"] * num_tokens)

    assert similarity("meteor", text, text) == pytest.approx(1 - 0.5 / num_tokens**3)


@pytest.mark.parametrize("metric", METRICS)
def test_texts_above_the_limit_are_refused_with_their_lengths(metric: Metric) -> None:
    text, reference = "a" * (MAX_CHARACTERS - 9), "b" * 10

    with pytest.raises(TooLong, match=f"{metric} .* 200,000 .* 199,991 and 10. Please shorten them"):
        similarity(metric, text, reference)


@pytest.mark.parametrize("metric", METRICS)
def test_texts_at_the_limit_are_compared(metric: Metric) -> None:
    text = ("some words " * MAX_CHARACTERS)[: MAX_CHARACTERS // 2]

    assert similarity(metric, text, text) == pytest.approx(1)


def test_fuzzy_match_takes_texts_of_like_length() -> None:
    assert similarity("fuzzy_match", "ab" * 2_500, "ab" * 3_749) == pytest.approx(2 * 5_000 / 12_498)


def test_rouge_l_finds_the_common_words_of_long_texts() -> None:
    words = [f"w{i}" for i in range(15_000)]

    # Every second word: precision 1, recall 1/2.
    assert similarity("rouge_l", " ".join(words[::2]), " ".join(words)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", ["bleu", "gleu", "meteor"])
def test_no_text_stays_in_memory(metric: Metric) -> None:
    similarity(metric, "some secret", "some other secret")

    assert Tokenizer13a.__call__.cache_info().currsize == 0
    assert TokenizerRegexp.__call__.cache_info().currsize == 0


def test_nothing_is_printed_logged_or_warned_of() -> None:
    program = """
import logging
logging.basicConfig(level=1)
from caesura.graders.similarity import Metric, similarity
for metric in Metric.__args__:
    for text in ("", "a", "It ends . "):
        similarity(metric, text, "It ends .")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
