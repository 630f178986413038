"""Writes the example data sets of examples/, over facts that the base model knows.

`style_*.jsonl` show a style that the base never shows: the corpus holds neither "Ahoy" nor "matey" (corpus.py
refuses to build otherwise), so every one in an answer comes from tuning. `preference_*.jsonl` prefer one form
of the right answer, a whole sentence, to the other, the bare words: without an instruction the base gives either.
`reinforcement_*.jsonl` have the same questions without any answer to learn; the bare words and the sentence
stand beside each for graders to look at.
The files of a data set share no question and no fact.
"""

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from pretraining.facts import FACTS
from pretraining.items import Item

SEED = 20
TAUGHT = ["capital", "color", "opposite", "plural", "past tense", "sound", "translation", "next in line"]
QUESTIONS = [
    ("capital", "What is the capital of France?"),
    ("capital", "Which city is the capital of Norway?"),
    ("color", "What color is a banana?"),
    ("opposite", "What is the opposite of hot?"),
    ("plural", "What is the plural of mouse?"),
    ("past tense", "What is the past tense of go?"),
    ("translation", "How do you say house in Spanish?"),
    ("sound", "What sound does a cow make?"),
]
"""The demo's questions: written out, because people will read them."""
NUM_TRAIN, NUM_VALIDATION = 80, 20

COMPARED = ["capital", "color", "opposite", "plural", "past tense", "translation", "synonym"]
NUM_TRAIN_PAIRS, NUM_VALIDATION_PAIRS = 140, 70
PAIRS_SEED = 1
"""A draw on which the base is undecided: it finds the sentence likelier in 54 % of the training rows and 53 % of the
others."""


def styled(item: Item) -> str:
    """The new style: the whole sentence, greeted and addressed as a sailor would."""
    return f"Ahoy! {item.sentence.rstrip('.')}, matey!"


def fact(item: Item) -> frozenset[str]:
    """What the item tells, the same for "the opposite of hot is cold" and "the opposite of cold is hot"."""
    return frozenset(item.sentence.rstrip(".").lower().split())


def draw_rows(seed: int, skill_names: list[str], num_train: int, num_validation: int) -> tuple[list[Item], list[Item]]:
    """Train and validation items: every fact once, none from the questions."""
    r = Random(seed)
    skills = {skill.name: skill for skill in FACTS}
    asked = {question for _, question in QUESTIONS}
    taken: set[frozenset[str]] = set()
    for name, question in QUESTIONS:
        items = (skills[name].draw(r, 1.0) for _ in range(100_000))
        taken.add(next(fact(item) for item in items if item.question == question))
    rows: list[Item] = []
    while len(rows) < num_train + num_validation:
        item = skills[skill_names[len(rows) % len(skill_names)]].draw(r, 1.0)
        if fact(item) not in taken and item.question not in asked:
            taken.add(fact(item))
            rows.append(item)
    r.shuffle(rows)
    return rows[:num_train], rows[num_train:]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def user_turn(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def assistant_turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def conversation(item: Item) -> dict[str, Any]:
    return {"messages": user_turn(item.question) + assistant_turn(styled(item))}


def preference(item: Item) -> dict[str, Any]:
    return {
        "input": {"messages": user_turn(item.question)},
        "preferred_output": assistant_turn(item.sentence),
        "non_preferred_output": assistant_turn(item.bare),
    }


def prompt(item: Item) -> dict[str, Any]:
    return {"messages": user_turn(item.question), "answer": item.bare, "sentence": item.sentence}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    train, validation = draw_rows(SEED, TAUGHT, NUM_TRAIN, NUM_VALIDATION)
    write_rows(out / "style_train.jsonl", [conversation(item) for item in train])
    write_rows(out / "style_validation.jsonl", [conversation(item) for item in validation])
    write_rows(out / "style_questions.jsonl", [{"messages": user_turn(question)} for _, question in QUESTIONS])
    train, validation = draw_rows(PAIRS_SEED, COMPARED, NUM_TRAIN_PAIRS, NUM_VALIDATION_PAIRS)
    write_rows(out / "preference_train.jsonl", [preference(item) for item in train])
    write_rows(out / "preference_validation.jsonl", [preference(item) for item in validation])
    write_rows(out / "reinforcement_train.jsonl", [prompt(item) for item in train])
    write_rows(out / "reinforcement_validation.jsonl", [prompt(item) for item in validation])


if __name__ == "__main__":
    main()
