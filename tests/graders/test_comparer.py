from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psutil
import pytest

from caesura.graders.comparer import Comparer, ComparisonFailed
from caesura.graders.similarity import MAX_CHARACTERS, similarity

T = TypeVar("T")
#: Texts that fuzzy_match needs very long for.
SLOW = "ab " * 20_000, "cd " * 45_000


def with_comparer(work: Callable[[Comparer], Awaitable[T]], timeout_s: float = 60.0) -> T:
    async def run() -> T:
        comparer = Comparer(timeout_s)
        try:
            return await work(comparer)
        finally:
            await comparer.close()

    return asyncio.run(run())


def children() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [child for child in found if "caesura.graders.similarity" in child.cmdline()]


def test_texts_are_compared_as_in_this_process() -> None:
    pairs = [
        ("the cat sat", "the cat lay"),
        ("ü\n\ud83d\ude00", "ü \u2028 \ud83d\ude00"),
        ("\ud800", "\ud800"),
        ("", "x"),
    ]

    async def work(comparer: Comparer) -> list[float]:
        return [await comparer.compare(metric, *pair) for metric in ("rouge_1", "fuzzy_match") for pair in pairs]

    assert with_comparer(work) == [similarity(metric, *pair) for metric in ("rouge_1", "fuzzy_match") for pair in pairs]


def test_nothing_is_started_before_it_is_needed_and_nothing_is_left() -> None:
    async def work(comparer: Comparer) -> None:
        assert children() == []
        await comparer.compare("rouge_1", "a", "b")
        assert len(children()) == 1
        await comparer.close()
        assert children() == []

    with_comparer(work)


def test_many_that_ask_at_once_get_their_own_answers() -> None:
    texts = ["word " * number for number in range(1, 30)]

    async def work(comparer: Comparer) -> list[float]:
        return await asyncio.gather(*(comparer.compare("rouge_1", text, texts[-1]) for text in texts))

    assert with_comparer(work) == [similarity("rouge_1", text, texts[-1]) for text in texts]


def test_texts_that_are_too_long_are_a_failure_that_says_so() -> None:
    async def work(comparer: Comparer) -> float:
        with pytest.raises(ComparisonFailed, match="200,000 characters"):
            await comparer.compare("rouge_l", "a" * MAX_CHARACTERS, "b")
        return await comparer.compare("rouge_1", "a", "a")

    assert with_comparer(work) == 1.0


def test_a_comparison_that_takes_too_long_is_broken_off_and_the_next_one_works() -> None:
    async def work(comparer: Comparer) -> float:
        with pytest.raises(ComparisonFailed, match=r"fuzzy_match took longer than 3 s\. Shorten the texts\."):
            await comparer.compare("fuzzy_match", *SLOW)
        assert children() == []
        comparer._timeout_s = 60.0
        return await comparer.compare("rouge_1", "a", "a")

    assert with_comparer(work, timeout_s=3.0) == 1.0


def test_one_that_is_no_longer_wanted_leaves_no_answer_for_the_next() -> None:
    async def work(comparer: Comparer) -> float:
        await comparer.compare("rouge_1", "a", "a")
        leaving = asyncio.create_task(comparer.compare("fuzzy_match", *SLOW))
        while not comparer._turn.locked():
            await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await comparer.compare("rouge_1", "a b", "a c")

    assert with_comparer(work) == 0.5


def test_a_process_that_died_is_replaced() -> None:
    async def work(comparer: Comparer) -> float:
        await comparer.compare("rouge_1", "a", "a")
        asking = asyncio.create_task(comparer.compare("fuzzy_match", *SLOW))
        while not comparer._turn.locked():
            await asyncio.sleep(0)
        children()[0].kill()
        with pytest.raises(ComparisonFailed, match="ended"):
            await asking
        return await comparer.compare("rouge_1", "a", "a")

    assert with_comparer(work) == 1.0


def test_after_its_end_nothing_is_compared() -> None:
    async def work(comparer: Comparer) -> None:
        await comparer.close()
        with pytest.raises(ComparisonFailed, match="shutting down"):
            await comparer.compare("rouge_1", "a", "a")

    with_comparer(work)


def test_the_server_imports_none_of_what_compares() -> None:
    program = (
        "import sys, caesura.app; print([n for n in ('nltk', 'sacrebleu', 'rouge_score', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
