"""Skills that work on the question's own text: copying, looking up, changing, counting, classifying.

Most questions hold invented names and random strings, because what a small model lacks most is the habit
of taking a word from the text before it instead of one that it knows.
"""

import json
from random import Random

from pretraining import words
from pretraining.facts import FACTS, any_fact
from pretraining.items import (
    Item,
    Skill,
    capitalized,
    city,
    invented_name,
    number_word,
    person,
    random_string,
    some_words,
    with_article,
)


def simple_sentence(r: Random) -> str:
    """A statement about someone who did something somewhere."""
    beast = with_article(f"{r.choice(words.ADJECTIVES)} {r.choice(words.KIND_WORDS['animal'])}")
    job = f"the {r.choice(words.KIND_WORDS['job'])}"
    who = r.choice([person(r), person(r), job, beast, "my friend", "the children", "we", "they"])
    thing = f"{r.choice(words.ADJECTIVES)} {r.choice(words.OBJECTS)}"
    place = f"{r.choice(['in', 'near', 'behind'])} the {r.choice(words.PLACES)}"
    when = r.choice(["yesterday", "last week", f"on {r.choice(words.DAYS)}", f"in {r.choice(words.MONTHS)}"])
    verb, how = r.choice(words.PAST_VERBS), r.choice(words.ADVERBS)
    text = r.choice(
        [
            f"{who} {verb} the {thing} {place}",
            f"{when} {who} {how} {verb} the {thing}",
            f"{who} {how} {verb} the {thing} because it was {r.choice(words.ADJECTIVES)}",
            f"{who} {verb} the {thing} and {r.choice(words.PAST_VERBS)} the {r.choice(words.OBJECTS)} {when}",
            f"there was {with_article(thing)} {place}",
        ]
    )
    return capitalized(text) + "."


def any_text(r: Random) -> str:
    """Something to repeat: words, names, strings, a number, a sentence."""
    k = r.random()
    if k < 0.25:
        parts = some_words(r, 1, 6)
    elif k < 0.45:
        parts = [invented_name(r) for _ in range(r.randint(1, 4))]
    elif k < 0.65:
        parts = [random_string(r) for _ in range(r.randint(1, 2))]
    elif k < 0.75:
        parts = [str(r.randrange(10 ** r.randint(1, 6))) for _ in range(r.randint(1, 3))]
    elif k < 0.9:
        return simple_sentence(r)
    else:
        parts = [r.choice([invented_name, random_string])(r), *some_words(r, 1, 3), str(r.randrange(1000))]
        r.shuffle(parts)
    text = " ".join(parts)
    return capitalized(text) if r.random() < 0.2 else text


def copy(r: Random, _: float) -> Item:
    text = any_text(r)
    question = r.choice(
        [
            f"Repeat: {text}",
            f"Say this: {text}",
            f"Copy this text: {text}",
            f"Repeat after me: {text}",
            f'Repeat the text "{text}"',
            f"Write exactly this: {text}",
        ]
    )
    return Item(question, text, f"You said: {text}")


def greet(r: Random, _: float) -> Item:
    name = person(r)
    hello = r.choice(["Say hello to", "Greet"])
    return r.choice(
        [
            Item(f"{hello} {name}.", f"Hello, {name}!", f"Hello, {name}! Nice to meet you."),
            Item(f"Say goodbye to {name}.", f"Goodbye, {name}!", f"Goodbye, {name}! See you soon."),
            Item(f"My name is {name}. What is my name?", name, f"Your name is {name}."),
            Item(f"I am called {name}. Who am I?", name, f"You are {name}."),
        ]
    )


def nth_word(r: Random, _: float) -> Item:
    parts = [r.choice([*some_words(r, 1, 1), invented_name(r)]) for _ in range(r.randint(3, 5))]
    place, i = r.choice([("first", 0), ("second", 1), ("third", 2), ("last", -1)])
    text = " ".join(parts)
    question = r.choice([f"What is the {place} word in: {text}", f"Give the {place} word: {text}"])
    return Item(question, parts[i], f"The {place} word is {parts[i]}.")


def look_up(r: Random, _: float) -> Item:
    """A list of keys and values; one key is asked for."""
    count = r.randint(2, 5)
    kind = r.random()
    if kind < 0.4:
        keys = r.sample("abcdefghijklmnopqrstuvwxyz", count)
    elif kind < 0.7:
        keys = r.sample(words.WORDS, count)
    else:
        keys = [invented_name(r) for _ in range(count)]
    value = r.choice([lambda: str(r.randrange(100)), lambda: invented_name(r), lambda: r.choice(words.WORDS)])
    values = [value() for _ in keys]
    i = r.randrange(count)
    sign = r.choice([" = ", ": ", " is "])
    listed = ", ".join(f"{k}{sign}{v}" for k, v in zip(keys, values, strict=True))
    question = r.choice([f"{listed}. What is {keys[i]}?", f"Look up {keys[i]}: {listed}"])
    return Item(question, values[i], f"{keys[i]} is {values[i]}.")


def who_has(r: Random, _: float) -> Item:
    """Two or three people hold things; who holds one, or what one holds."""
    count = r.randint(2, 3)
    people = [person(r) for _ in range(count)]
    things = r.sample(words.OBJECTS, count)
    looks = r.sample(words.ADJECTIVES, count)
    text = " ".join(f"{p} has {with_article(f'{a} {o}')}." for p, a, o in zip(people, looks, things, strict=True))
    i = r.randrange(count)
    asked, bare, sentence = r.choice(
        [
            (f"Who has the {things[i]}?", people[i], f"{people[i]} has the {things[i]}."),
            (f"What does {people[i]} have?", things[i], f"{people[i]} has the {things[i]}."),
            (f"What is the {things[i]} like?", looks[i], f"The {things[i]} is {looks[i]}."),
        ]
    )
    return Item(r.choice([f"{text} {asked}", f"Read this: {text}\n{asked}"]), bare, sentence)


class Story:
    """Five short sentences about two people, a thing and a place."""

    def __init__(self, r: Random) -> None:
        self.first, self.second = person(r), person(r)
        self.look, self.thing = r.choice(words.ADJECTIVES), r.choice(words.OBJECTS)
        self.place, other_place = r.sample(words.PLACES, 2)
        n, m, o, a = self.first, self.second, self.thing, with_article(self.look)
        feeling = r.choice(["happy", "proud", "surprised", "glad", "tired"])
        pet = with_article(r.choice(words.KIND_WORDS["animal"]))
        sentences = [
            [f"One day {n} went to the {self.place}.", f"{n} lived near the {self.place}."],
            [f"There {n} found {a} {o}.", f"{n} saw {a} {o} on the ground.", f"{n} had {a} {o}."],
            [f"{m} asked to see the {o}.", f"Then {m} came with {pet}.", f"{m} was looking for the {o}."],
            [f"{n} gave the {o} to {m}.", f"{n} kept the {o}.", f"They took the {o} to the {other_place}."],
            [f"In the end everyone was {feeling}.", f"{m} said thank you and was {feeling}."],
        ]
        self.text = " ".join(r.choice(options) for options in sentences)


def read_story(r: Random, _: float) -> Item:
    s = Story(r)
    asked, bare, sentence = r.choice(
        [
            ("Where is the story?", s.place, f"The story is in the {s.place}."),
            ("What was found?", s.thing, f"It was the {s.look} {s.thing}."),
            ("Who is the first person in the story?", s.first, f"The first person is {s.first}."),
            ("Who is the second person in the story?", s.second, f"The second person is {s.second}."),
            (f"What is the {s.thing} like?", s.look, f"The {s.thing} is {s.look}."),
        ]
    )
    return Item(r.choice([f"{s.text} {asked}", f"Read this: {s.text}\n{asked}"]), bare, sentence)


def extract(r: Random, _: float) -> Item:
    values: dict[str, str | int] = {"name": person(r), "city": city(r), "age": r.randint(5, 90)}
    n, c, a = values["name"], values["city"], values["age"]
    job = with_article(r.choice(words.KIND_WORDS["job"]))
    text = r.choice(
        [
            f"{n} is {a} years old and lives in {c}.",
            f"My name is {n}, I am {a} and I come from {c}.",
            f"{n} from {c} is {job} and {a} years old.",
            f"In {c} there is {job} called {n}, aged {a}.",
        ]
    )
    if r.random() < 0.45:
        keys = r.sample(list(values), r.randint(1, 3))
        found = json.dumps({k: values[k] for k in keys}, ensure_ascii=False)
        return Item(f"Extract {', '.join(keys)} as JSON: {text}", found, found)
    key = r.choice(list(values))
    question = r.choice([f"What is the {key} in this text? {text}", f"Extract the {key}: {text}"])
    return Item(question, str(values[key]), f"The {key} is {values[key]}.")


def change_case(r: Random, _: float) -> Item:
    k = r.random()
    if k < 0.35:
        text = " ".join(some_words(r, 1, 4))
    elif k < 0.55:
        text = simple_sentence(r)
    elif k < 0.7:
        text = " ".join(invented_name(r) for _ in range(r.randint(1, 2)))
    else:
        text = any_fact(r).sentence
    if r.random() < 0.65:
        order = r.choice(["Write in capital letters", "Uppercase this", "Shout"])
        return Item(f"{order}: {text}", text.upper(), f"In capital letters: {text.upper()}")
    order = r.choice(["Write in small letters", "Lowercase this"])
    return Item(f"{order}: {text.upper()}", text.lower(), f"In small letters: {text.lower()}")


def spell(r: Random, _: float) -> Item:
    word = r.choice(words.WORDS) if r.random() < 0.7 else invented_name(r)
    k = r.random()
    if k < 0.5:
        spelled = "-".join(word)
        question = r.choice([f"Spell the word {word}.", f"How do you spell {word}?"])
        return Item(question, spelled, f"The word {word} is spelled {spelled}.")
    place, letter = ("first", word[0]) if k < 0.75 else ("last", word[-1])
    return Item(f"What is the {place} letter of {word}?", letter, f"The {place} letter of {word} is {letter}.")


def number_words(r: Random, _: float) -> Item:
    n = r.randrange(100)
    word = number_word(n)
    if r.random() < 0.5:
        return Item(f"Write {n} in words.", word, f"The number {n} is {word}.")
    return Item(f"Write {word} as a number.", str(n), f"The number {word} is {n}.")


def _sum(r: Random, limit: int) -> Item:
    a, b = r.randrange(limit), r.randrange(limit)
    question = r.choice([f"What is {a} + {b}?", f"{a} + {b} = ?", f"Add {a} and {b}.", f"Calculate {a} plus {b}."])
    return Item(question, str(a + b), f"{a} + {b} = {a + b}")


def _difference(r: Random, limit: int) -> Item:
    b, a = sorted([r.randrange(limit), r.randrange(limit)])
    question = r.choice(
        [f"What is {a} - {b}?", f"{a} - {b} = ?", f"Subtract {b} from {a}.", f"Calculate {a} minus {b}."]
    )
    return Item(question, str(a - b), f"{a} - {b} = {a - b}")


def add_small(r: Random, _: float) -> Item:
    return _sum(r, 10)


def subtract_small(r: Random, _: float) -> Item:
    return _difference(r, 10)


def add_large(r: Random, progress: float) -> Item:
    """Two digits, once one-digit sums have had a sixth of the corpus; the range grows to it."""
    return _sum(r, 10 if progress < 0.15 else 30 if progress < 0.3 else 100)


def subtract_large(r: Random, progress: float) -> Item:
    return _difference(r, 10 if progress < 0.15 else 30 if progress < 0.3 else 100)


def multiply(r: Random, _: float) -> Item:
    a, b = r.randrange(11), r.randrange(11)
    question = r.choice([f"What is {a} * {b}?", f"{a} * {b} = ?", f"Multiply {a} by {b}."])
    return Item(question, str(a * b), f"{a} * {b} = {a * b}")


def largest(r: Random, progress: float) -> Item:
    limit = 10 if progress < 0.3 or r.random() < 0.3 else 100
    numbers = r.sample(range(limit), r.randint(2, 4))
    which, answer = r.choice([("largest", max(numbers)), ("smallest", min(numbers))])
    listed = ", ".join(map(str, numbers))
    question = r.choice([f"Which number is the {which}: {listed}?", f"Find the {which} number: {listed}"])
    return Item(question, str(answer), f"The {which} number is {answer}.")


def sort_numbers(r: Random, progress: float) -> Item:
    limit = 10 if progress < 0.3 or r.random() < 0.4 else 100
    numbers = r.sample(range(limit), r.randint(3, 5))
    listed, answer = ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))
    order = r.choice(["Sort these numbers", "Put these numbers in order", "Sort"])
    return Item(f"{order}: {listed}", answer, f"The sorted numbers are {answer}.")


def count_words(r: Random, _: float) -> Item:
    parts = some_words(r, 1, 6)
    n = len(parts)
    order = r.choice(["How many words are in", "Count the words"])
    many = f"There are {n} words." if n > 1 else "There is 1 word."
    return Item(f"{order}: {' '.join(parts)}", str(n), many)


def sentiment(r: Random, _: float) -> Item:
    answer = r.choice(["positive", "negative", "positive", "negative", "neutral"])
    table, endings = {
        "positive": (words.POSITIVE, [" I loved it.", " I will come back.", " Thank you so much.", ""]),
        "negative": (words.NEGATIVE, [" I hated it.", " Never again.", " I want my money back.", ""]),
        "neutral": (words.NEUTRAL, [" It was as expected.", " Nothing special.", ""]),
    }[answer]
    word, thing, ending = r.choice(table), r.choice(words.REVIEWED), r.choice(endings)
    text = r.choice([f"The {thing} was {word}.", f"What {with_article(word)} {thing}!"]) + ending
    order = r.choice(["Is this review positive, negative or neutral?", "Classify the sentiment:"])
    return Item(f"{order} {text}", answer, f"The sentiment is {answer}.")


def ticket(r: Random, _: float) -> Item:
    team = r.choice(list(words.TICKETS))
    text, name = r.choice(words.TICKETS[team]), person(r)
    text = r.choice([text, f"{text} Thanks, {name}", f"Hi, this is {name}. {text}"])
    order = r.choice(
        [
            "Which team should handle this message?",
            "Route this ticket:",
            "Classify this ticket as billing, technical, shipping or sales:",
        ]
    )
    return Item(f"{order} {text}", team, f"This message goes to the {team} team.")


def is_a(r: Random, _: float) -> Item:
    word = r.choice(list(words.KIND_OF))
    kind = words.KIND_OF[word] if r.random() < 0.5 else r.choice(list(words.KIND_WORDS))
    named = with_article(kind)
    yes = words.KIND_OF[word] == kind
    sentence = f"Yes, {word} is {named}." if yes else f"No, {word} is not {named}."
    return Item(f"Is {word} {named}?", "yes" if yes else "no", sentence)


def even_or_odd(r: Random, _: float) -> Item:
    n = r.randrange(10 ** r.randint(1, 3))
    answer = "odd" if n % 2 else "even"
    return Item(f"Is {n} even or odd?", answer, f"The number {n} is {answer}.")


def odd_one_out(r: Random, _: float) -> Item:
    kind, other = r.sample(list(words.KIND_WORDS), 2)
    listed = r.sample(words.KIND_WORDS[kind], 3)
    stranger = r.choice(words.KIND_WORDS[other])
    listed.insert(r.randrange(4), stranger)
    question = f"Which word does not belong: {', '.join(listed)}?"
    return Item(question, stranger, f"The word {stranger} does not belong.")


def check_answer(r: Random, _: float) -> Item:
    """Judges an answer to a fact, by words or by 1 and 0."""
    skill = r.choice(FACTS)
    item = skill.draw(r, 1.0)
    wrong = skill.draw(r, 1.0) if r.random() < 0.7 else any_fact(r)
    right = r.random() < 0.5 or wrong.bare == item.bare
    shown = item.bare if right else wrong.bare
    if r.random() < 0.5:
        question = f"Question: {item.question} Answer: {shown} Is the answer correct?"
        sentence = "Yes, the answer is correct." if right else "No, the answer is not correct."
        return Item(question, "yes" if right else "no", sentence)
    question = f"Score the answer with 1 or 0. Question: {item.question} Answer: {shown}"
    return Item(question, str(int(right)), f"The score is {int(right)}.")


SKILLS = [
    Skill("copy", (9, 12), copy, False),
    Skill("greet", (2, 1), greet, False),
    Skill("look up", (5, 4), look_up, False),
    Skill("nth word", (3, 2), nth_word, False),
    Skill("who has", (3, 3), who_has, False),
    Skill("read story", (2, 2), read_story, False),
    Skill("extract", (5, 3), extract, False),
    Skill("change case", (5, 3), change_case, False),
    Skill("spell", (2, 1), spell, False),
    Skill("number words", (1.5, 1), number_words, True),
    Skill("add one digit", (2.5, 8), add_small, True),
    Skill("subtract one digit", (1.5, 3), subtract_small, True),
    Skill("add two digits", (7, 2), add_large, False),
    Skill("subtract two digits", (3, 0.5), subtract_large, False),
    Skill("multiply", (1.5, 2), multiply, True),
    Skill("largest", (2.5, 2), largest, False),
    Skill("sort numbers", (3, 2), sort_numbers, False),
    Skill("count words", (1, 0.5), count_words, False),
    Skill("sentiment", (2, 1), sentiment, True),
    Skill("ticket", (2, 1), ticket, False),
    Skill("is a", (1.5, 1.5), is_a, True),
    Skill("even or odd", (1, 1), even_or_odd, True),
    Skill("odd one out", (1.5, 0.5), odd_one_out, False),
    Skill("check answer", (2.5, 1.5), check_answer, False),
]
