"""The corpus: conversations drawn from a seed. Nothing is downloaded and no text of others is used.

python -m pretraining.corpus        prints some conversations to look at
"""

import json
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from pretraining import words
from pretraining.facts import FACTS
from pretraining.items import Item, Skill, capitalized, invented_name, is_held_out, person, with_article
from pretraining.skills import SKILLS, Story, simple_sentence
from pretraining.styles import draw_style
from pretraining.tools import tool_conversation

ALL_SKILLS: list[Skill] = [*FACTS, *SKILLS]
_WEIGHTS = [[skill.weights[stage] for skill in ALL_SKILLS] for stage in range(2)]
RESERVED_WORDS = ("ahoy", "matey")
"""Words of the example style (examples.py): the base model must never have seen them."""


class Conversation(NamedTuple):
    """Messages and tools as OpenAI's chat format writes them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def _dialogue(*texts: str) -> Conversation:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return Conversation([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


def draw_item(r: Random, progress: float, stage: int) -> Item:
    """A question for training: never one that is_held_out keeps for the test."""
    while True:
        skill = r.choices(ALL_SKILLS, _WEIGHTS[stage])[0]
        item = skill.draw(r, progress)
        if skill.closed or not is_held_out(item.question):
            return item


def small_talk(r: Random) -> Conversation:
    said = r.choice(list(words.SMALL_TALK))
    return _dialogue(said, r.choice(words.SMALL_TALK[said]))


def tell_story(r: Random) -> Conversation:
    s = Story(r)
    asked = r.choice(
        [
            f"Tell me a story about {s.first} and {s.second}.",
            f"Tell me a story about {s.first} and {s.second}.",
            f"Tell me a story about {with_article(s.thing)}.",
            f"Write a short story in the {s.place}.",
            "Tell me a story.",
        ]
    )
    return _dialogue(asked, s.text)


def say_something(r: Random) -> Conversation:
    asked = r.choice(["Write a sentence.", "Say something.", "Tell me something.", "Write one sentence."])
    return _dialogue(asked, simple_sentence(r))


def tell_about(r: Random) -> Conversation:
    k = r.random()
    if k < 0.3:
        topic = r.choice(list(words.CAPITALS))
        text = f"{topic} is a country. Its capital is {words.CAPITALS[topic]}."
    elif k < 0.5:
        animal = r.choice(list(words.SOUNDS))
        topic = with_article(animal)
        text = f"{capitalized(topic)} is an animal. It says {words.SOUNDS[animal]}."
    else:
        word = r.choice(list(words.KIND_OF))
        kind = words.KIND_OF[word]
        topic = word if kind in ("color", "sport", "drink", "clothing") else with_article(word)
        others = ", ".join(r.sample([w for w in words.KIND_WORDS[kind] if w != word], 2))
        text = f"{capitalized(word)} is {with_article(kind)}. Other examples are {others}."
    return _dialogue(r.choice([f"Tell me about {topic}.", f"What do you know about {topic}?"]), text)


def remember(r: Random, stage: int) -> Conversation:
    """Something is said in one turn and asked for in a later one."""
    name, thing, value = (
        person(r),
        r.choice(words.OBJECTS),
        r.choice([invented_name(r), str(r.randrange(1000))]),
    )
    told, noted, asked, bare, sentence = r.choice(
        [
            (
                f"My name is {name}.",
                f"Nice to meet you, {name}!",
                "What is my name?",
                name,
                f"Your name is {name}.",
            ),
            (
                f"The code is {value}.",
                "Okay, I will remember it.",
                "What is the code?",
                value,
                f"The code is {value}.",
            ),
            (
                f"My {thing} is called {value}.",
                "What a nice name!",
                f"What is my {thing} called?",
                value,
                f"It is {value}.",
            ),
        ]
    )
    between = draw_item(r, 1.0, stage)
    middle = [between.question, r.choice([between.bare, between.sentence])] if r.random() < 0.4 else []
    return _dialogue(told, noted, *middle, asked, r.choice([bare, sentence]))


def questions(r: Random, progress: float, stage: int) -> Conversation:
    """One to three questions, all answered in one style."""
    style = draw_style(r)
    num_questions = 1 if r.random() < 0.88 else r.randint(2, 3)
    items = [draw_item(r, progress, stage) for _ in range(num_questions)]
    dialogue = _dialogue(*(text for item in items for text in (item.question, style.apply(item))))
    system = [{"role": "system", "content": style.system}] if style.system else []
    return Conversation(system + dialogue.messages)


def draw_conversation(r: Random, progress: float, stage: int) -> Conversation:
    k = r.random()
    if k < 0.04:
        return Conversation(*tool_conversation(r))
    if k < 0.055:
        return small_talk(r)
    if k < 0.08:
        return tell_story(r)
    if k < 0.09:
        return say_something(r)
    if k < 0.10:
        return tell_about(r)
    if k < 0.125:
        return remember(r, stage)
    return questions(r, progress, stage)


def draw_corpus(seed: int, num_conversations: int, stage: int = 0) -> Iterator[Conversation]:
    """A stage's corpus in its order. The first gets harder as it goes on, the second is hard throughout."""
    r = Random(seed)
    for i in range(num_conversations):
        yield draw_conversation(r, 1.0 if stage else i / num_conversations, stage)


if __name__ == "__main__":
    for conversation in draw_corpus(seed=1, num_conversations=60):
        print(json.dumps(conversation.messages, ensure_ascii=False))
