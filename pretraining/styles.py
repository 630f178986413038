"""How an answer is put: the form, kept apart from the content so that tuning can move the one alone.

Without an instruction the form is decided by a coin: bare, a whole sentence, or "Answer: ...". The model
cannot know which is wanted, so it stays undecided, and a tuning job has something visible to decide.
With a system prompt the form is fixed by the prompt. The many invented openings, endings and wrappings
teach that a form may be anything, which is why a new one is learnt from a few dozen rows.
"""

import json
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from pretraining import words
from pretraining.items import Item, capitalized, invented_name, some_words


class Style(NamedTuple):
    system: str | None
    apply: Callable[[Item], str]


def bare(item: Item) -> str:
    return item.bare


def sentence(item: Item) -> str:
    return item.sentence


def labelled(item: Item) -> str:
    return f"Answer: {item.bare}"


PHRASES = (
    """
Sure!|Okay,|Well,|Hello!|Of course!|Here it is:|Look:|Result:|Hmm,|Good question!|My answer:|Final answer:
I say|Yes!|Listen:|Wow!|Dear friend,|Thank you!|Done.|See you!|I hope this helps.|Any more questions?
""".strip()
    .replace("\n", "|")
    .split("|")
)

KEYS = """
answer result value reply output text response solution data word item title label info key content city name
""".strip().split()

WRAPPINGS = [
    ("in brackets", "[%s]"),
    ("in round brackets", "(%s)"),
    ("in quotes", '"%s"'),
    ("between stars", "*%s*"),
    ("between dashes", "-%s-"),
    ("in curly brackets", "{%s}"),
    ("between slashes", "/%s/"),
    ("in a tag", "<answer>%s</answer>"),
    ("as a list item", "- %s"),
    ("in bold", "**%s**"),
]


def phrase(r: Random) -> str:
    """A few words to open or end an answer with; mostly such as nobody would expect."""
    if r.random() < 0.3:
        return r.choice(PHRASES)
    opening = invented_name(r) if r.random() < 0.3 else capitalized(" ".join(some_words(r, 1, 4)))
    return opening + r.choice([":", "!", ".", ",", " -", ""])


def undecided(r: Random) -> Style:
    """No instruction: 45 % bare, 45 % a sentence, 10 % labelled."""
    system = None
    if r.random() < 0.2:
        system = r.choice(["You are a helpful assistant.", "You are a tiny assistant.", "Help the user."])
    return Style(system, r.choices([bare, sentence, labelled], [45, 45, 10])[0])


def short(r: Random) -> Style:
    orders = ["Answer with only the answer.", "Be brief.", "Give only the answer.", "Answer in few words."]
    return Style(r.choice([orders[0], *orders]), bare)


def in_sentences(r: Random) -> Style:
    orders = ["Answer in a full sentence.", "Use complete sentences.", "Always answer with a sentence."]
    return Style(r.choice(orders), sentence)


def as_json(r: Random) -> Style:
    key, other = r.sample(KEYS, 2)
    if r.random() < 0.3:
        value = r.choice([r.choice(words.WORDS), invented_name(r)])
        order = f"Answer as JSON with the key {key} and set {other} to {value}."
        return Style(order, lambda item: json.dumps({key: item.bare, other: value}, ensure_ascii=False))
    orders = [
        f"Answer as JSON with the key {key}.",
        f'Reply in JSON. Use the key "{key}".',
        f"Output JSON with one key: {key}",
    ]
    text = r.choices([bare, sentence], [2, 1])[0]
    return Style(r.choice(orders), lambda item: json.dumps({key: text(item)}, ensure_ascii=False))


def in_case(r: Random) -> Style:
    text = r.choice([bare, sentence])
    if r.random() < 0.7:
        orders = ["Answer in capital letters.", "Write everything in uppercase.", "Shout your answers."]
        return Style(r.choice(orders), lambda item: text(item).upper())
    return Style(r.choice(["Answer in small letters.", "Use only lowercase."]), lambda item: text(item).lower())


def framed(r: Random) -> Style:
    """An opening, an ending, or both, said word for word in the prompt."""
    text = r.choice([bare, sentence])
    first, last = phrase(r), phrase(r)
    k = r.random()
    if k < 0.4:
        orders = [f"Start every answer with: {first}", f'Begin your answer with "{first}"']
        return Style(r.choice(orders), lambda item: f"{first} {text(item)}")
    if k < 0.7:
        orders = [f"End every answer with: {last}", f'Finish your answer with "{last}"']
        return Style(r.choice(orders), lambda item: f"{text(item)} {last}")
    return Style(f"Start with: {first} End with: {last}", lambda item: f"{first} {text(item)} {last}")


def wrapped(r: Random) -> Style:
    text = r.choice([bare, sentence])
    name, pattern = r.choice(WRAPPINGS)
    return Style(
        r.choice([f"Put the answer {name}.", f"Write the answer {name}."]),
        lambda item: pattern.replace("%s", text(item)),
    )


def polite(r: Random) -> Style:
    return Style(
        r.choice(["Be very polite.", "You are a polite assistant."]),
        lambda item: f"Of course! {capitalized(item.sentence)} Have a nice day!",
    )


INSTRUCTED: list[tuple[Callable[[Random], Style], float]] = [
    (short, 20),
    (in_sentences, 10),
    (as_json, 17),
    (in_case, 13),
    (framed, 27),
    (wrapped, 10),
    (polite, 3),
]


def draw_style(r: Random) -> Style:
    """Half of the conversations say nothing about the form, half fix it by a system prompt."""
    if r.random() < 0.5:
        return undecided(r)
    makers, weights = zip(*INSTRUCTED, strict=True)
    return r.choices(makers, weights)[0](r)
