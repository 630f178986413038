"""Writes the example data sets of examples/: a style that the base model never shows, over facts it knows.

The corpus holds neither "Ahoy" nor "matey" (corpus.py refuses to build otherwise), so every one in an
answer comes from tuning. The three files share no question and no fact.
"""

import argparse
import json
from pathlib import Path
from random import Random

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


def styled(item: Item) -> str:
    """The new style: the whole sentence, greeted and addressed as a sailor would."""
    return f"Ahoy! {item.sentence.rstrip('.')}, matey!"


def fact(item: Item) -> frozenset[str]:
    """What the item tells, the same for "the opposite of hot is cold" and "the opposite of cold is hot"."""
    return frozenset(item.sentence.rstrip(".").split())


def draw_rows() -> tuple[list[Item], list[Item]]:
    """Train and validation items: every fact once, none from the questions."""
    r = Random(SEED)
    skills = {skill.name: skill for skill in FACTS}
    asked = {question for _, question in QUESTIONS}
    taken: set[frozenset[str]] = set()
    for name, question in QUESTIONS:
        items = (skills[name].draw(r, 1.0) for _ in range(100_000))
        taken.add(next(fact(item) for item in items if item.question == question))
    rows: list[Item] = []
    while len(rows) < NUM_TRAIN + NUM_VALIDATION:
        item = skills[TAUGHT[len(rows) % len(TAUGHT)]].draw(r, 1.0)
        if fact(item) not in taken and item.question not in asked:
            taken.add(fact(item))
            rows.append(item)
    r.shuffle(rows)
    return rows[:NUM_TRAIN], rows[NUM_TRAIN:]


def write_rows(path: Path, conversations: list[list[dict[str, str]]]) -> None:
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) for messages in conversations)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def conversation(item: Item) -> list[dict[str, str]]:
    return [{"role": "user", "content": item.question}, {"role": "assistant", "content": styled(item)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("examples"))
    out: Path = parser.parse_args().out
    train, validation = draw_rows()
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "style_train.jsonl", [conversation(item) for item in train])
    write_rows(out / "style_validation.jsonl", [conversation(item) for item in validation])
    write_rows(out / "style_questions.jsonl", [[{"role": "user", "content": q}] for _, q in QUESTIONS])


if __name__ == "__main__":
    main()
