"""The examples, run as a user runs them: each a process of its own with a server of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caesura.settings import ENV_PREFIX

EXAMPLES = Path(__file__).parent.parent / "examples"
#: What the examples promise on two cores.
LONGEST_S = 120
LONGEST_OF_REINFORCE_S = 240


def run_example(name: str, longest_s: float = LONGEST_S) -> str:
    """What the example printed. It must have succeeded."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name],
        capture_output=True,
        text=True,
        env=inherited | {"COLUMNS": "200"},  # no line of a table is broken
        timeout=longest_s,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def shares(printed: str, label: str) -> list[float]:
    """The shares that stand beside the label in a table."""
    (cells,) = re.findall(rf"│ {re.escape(label)} +│(.*)", printed)
    return [float(percent) / 100 for percent in re.findall(r"([\d.]+)%", cells)]


def read_pairs(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]


def content(messages: list[dict[str, Any]]) -> str:
    (message,) = messages
    return message["content"]


@pytest.mark.timeout(LONGEST_S + 30)
def test_tuning_on_preferences_makes_an_undecided_base_decided_on_unseen_pairs() -> None:
    printed = run_example("prefer.py")

    base, tuned = shares(printed, "the preferred answer is the likelier one")
    assert 0.4 <= base <= 0.6
    assert tuned > 0.85
    assert shares(printed, "full_valid_reward_accuracy, as the job told it")[0] > 0.85
    # Too high a rate makes both answers unlikely, the preferred one only less so: then the model gives neither.
    base, tuned = shares(printed, "the preferred answer is given, word for word")
    assert base < 0.6
    assert tuned > 0.9


@pytest.mark.timeout(LONGEST_S + 30)
def test_the_demo_teaches_its_style_across_a_pause() -> None:
    printed = run_example("demo.py")

    assert re.search(r"Paused after [\d.]+ s\. Process \d+ exists: no;", printed)
    assert re.search(r"Ahoy! The capital of France is Paris, matey!", printed)


@pytest.mark.timeout(LONGEST_OF_REINFORCE_S + 30)
def test_reinforcement_lifts_the_mean_reward_on_unseen_prompts_by_each_grader() -> None:
    printed = run_example("reinforce.py", LONGEST_OF_REINFORCE_S)

    rows = re.findall(r"│ (a string check|Python|a formula over two) +│ ([\d.]+) +│ ([\d.]+) +│ (\+[\d.]+)", printed)
    assert [name for name, *_ in rows] == ["a string check", "Python", "a formula over two"]
    for _, base, tuned, gain in rows:
        assert float(tuned) - float(base) >= 0.3
        assert float(gain) >= 0.3


def test_a_validated_pair_tells_nothing_that_a_training_pair_tells() -> None:
    def facts(name: str) -> list[frozenset[str]]:
        # As words in no order: "the opposite of hot is cold" is the fact that "the opposite of cold is hot" is.
        return [frozenset(content(row["preferred_output"]).lower().split()) for row in read_pairs(name)]

    training, validation = facts("preference_train.jsonl"), facts("preference_validation.jsonl")

    assert len(set(training)) == len(training) == 140
    assert len(set(validation)) == len(validation) == 70
    assert not set(training) & set(validation)


def test_prompts_have_no_answer_in_their_messages_and_share_none_with_the_validation_file() -> None:
    training, validation = (
        [json.loads(line) for line in (EXAMPLES / f"reinforcement_{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    )

    assert (len(training), len(validation)) == (140, 70)
    for row in training + validation:
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert row["answer"] in row["sentence"]
    assert not {row["sentence"] for row in training} & {row["sentence"] for row in validation}


@pytest.mark.parametrize("name", ["preference_train.jsonl", "preference_validation.jsonl"])
def test_both_answers_of_a_pair_say_the_same_and_the_sentence_is_preferred(name: str) -> None:
    for row in read_pairs(name):
        sentence, bare = content(row["preferred_output"]), content(row["non_preferred_output"])

        assert re.fullmatch(r"[A-Z][^.]*\.", sentence)
        assert bare in sentence
        assert not bare.endswith(".")
