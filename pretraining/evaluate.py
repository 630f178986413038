"""The acceptance test of a rebuilt model: exact match per skill, and some answers to read.

    python -m pretraining.evaluate --model caesura/assets/caesura-tiny

Each skill is asked `--count` questions with the system prompt "Answer with only the answer." and answered
greedily. Questions of open skills are held out: the corpus holds none of them. Those of closed skills (a
table learnt by heart) cannot be. A second column samples without a system prompt and gives the shares of
bare, sentence and labelled answers: the base model is to be undecided.
"""

import argparse
import time
from random import Random
from typing import Any

import torch

from pretraining.corpus import ALL_SKILLS
from pretraining.generate import answers, load, user
from pretraining.items import Item, Skill, is_held_out
from pretraining.tools import TOOLS, definition

SEED = 4242
ORDER = "Answer with only the answer."
TARGETS = {"copy": 0.9, "add one digit": 0.9, "capital": 0.9, "country": 0.9, "trivia": 0.9}
"""What a rebuilt model must reach to be shipped."""

SAMPLES: list[tuple[str, str | None]] = [
    ("Hello!", None),
    ("What is the capital of Peru?", None),
    ("What is the capital of Peru?", "Answer as JSON with the key city."),
    ("What is the capital of France?", "Start every answer with: Howdy!"),
    ("What is the opposite of hot?", "Answer in capital letters."),
    ("My name is Zubalor. What is my name?", None),
    ("Repeat after me: qX7-bb zorp", None),
    ("Sort these numbers: 9, 3, 5", None),
    ("What is 27 + 35?", None),
    ("Extract name, age as JSON: Bob is 41 years old and lives in Paris.", None),
    ("Tell me a story about Tom and Lucy.", None),
    ("Write a poem about the sea.", None),
    ("Who was Napoleon?", None),
]


def draw_questions(skill: Skill, count: int, seed: int) -> list[Item]:
    """Questions of the final difficulty; held-out ones where the skill is open."""
    r = Random(f"{seed}/{skill.name}")
    found: list[Item] = []
    while len(found) < count:
        item = skill.draw(r, 1.0)
        if skill.closed or is_held_out(item.question):
            found.append(item)
    return found


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def evaluate_skill(model: Any, tokenizer: Any, skill: Skill, count: int, seed: int) -> tuple[float, str]:
    """The share of exact answers, and a line for the table."""
    items = draw_questions(skill, count, seed)
    told = answers(model, tokenizer, [user(item.question, ORDER) for item in items])
    free = answers(model, tokenizer, [user(item.question) for item in items], seed=seed)
    exact = share([text == item.bare for text, item in zip(told, items, strict=True)])
    pairs = list(zip(free, items, strict=True))
    bare = share([text == item.bare for text, item in pairs])
    sentence = share([text == item.sentence for text, item in pairs])
    labelled = share([text == f"Answer: {item.bare}" for text, item in pairs])
    wrong = next(((i.question, i.bare, t) for t, i in zip(told, items, strict=True) if t != i.bare), None)
    example = f"{wrong[0]!r} wanted {wrong[1]!r} got {wrong[2]!r}" if wrong else ""
    kind = "table" if skill.closed else "held out"
    shares = f"{bare:.2f} {sentence:.2f} {labelled:.2f}"
    return exact, f"| {skill.name} | {kind} | {exact:.2f} | {shares} | {example}"


def print_samples(model: Any, tokenizer: Any) -> None:
    for question, system in SAMPLES:
        (said,) = answers(model, tokenizer, [user(question, system)], max_new=80)
        print(f"{question!r}{f' [{system}]' if system else ''} -> {said!r}")
    tools = [definition(name, TOOLS[name]) for name in ("get_weather", "add")]
    (said,) = answers(model, tokenizer, [user("What is the weather in Madrid?")], tools)
    print(f"with tools, 'What is the weather in Madrid?' -> {said!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=SEED, help="another seed asks other questions")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model)
    started = time.monotonic()
    print("| skill | questions | exact | sampled: bare, sentence, labelled | first wrong answer")
    exact: dict[str, float] = {}
    for skill in ALL_SKILLS:
        exact[skill.name], line = evaluate_skill(model, tokenizer, skill, args.count, args.seed)
        print(line, flush=True)
    print(f"mean {sum(exact.values()) / len(exact):.3f} over {len(exact)} skills")
    print_samples(model, tokenizer)
    print(f"{time.monotonic() - started:.0f} s")
    missed = [f"{name} {exact[name]:.2f} < {least}" for name, least in TARGETS.items() if exact[name] < least]
    if missed:
        raise SystemExit("not good enough: " + "; ".join(missed))


if __name__ == "__main__":
    main()
