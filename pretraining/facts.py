"""Skills learnt by heart: each draws one entry of a table of `words` and words a question about it."""

from random import Random

from pretraining import words
from pretraining.items import Item, Skill, capitalized, with_article


def _key(r: Random, table: dict[str, str]) -> str:
    return r.choice(list(table))


def capital(r: Random, _: float) -> Item:
    country = _key(r, words.CAPITALS)
    name = words.CAPITALS[country]
    question = r.choice(
        [
            f"What is the capital of {country}?",
            f"Name the capital of {country}.",
            f"Capital of {country}?",
            f"Which city is the capital of {country}?",
        ]
    )
    return Item(question, name, f"The capital of {country} is {name}.")


def country_of(r: Random, _: float) -> Item:
    country = _key(r, words.CAPITALS)
    name = words.CAPITALS[country]
    question = r.choice([f"{name} is the capital of which country?", f"Which country has the capital {name}?"])
    return Item(question, country, f"{name} is the capital of {country}.")


def color(r: Random, _: float) -> Item:
    thing = _key(r, words.COLORS)
    answer = words.COLORS[thing]
    question = r.choice(
        [f"What color is {thing}?", f"Which color does {thing} have?", f"Tell me the color of {thing}."]
    )
    return Item(question, answer, f"{capitalized(thing)} is {answer}.")


def opposite(r: Random, _: float) -> Item:
    word = _key(r, words.OPPOSITES)
    answer = words.OPPOSITES[word]
    if r.random() < 0.4:
        word, answer = answer, word
    question = r.choice([f"What is the opposite of {word}?", f"Give the opposite of {word}.", f"Opposite of {word}?"])
    return Item(question, answer, f"The opposite of {word} is {answer}.")


def plural(r: Random, _: float) -> Item:
    word = _key(r, words.PLURALS)
    answer = words.PLURALS[word]
    question = r.choice([f"What is the plural of {word}?", f"Give the plural of {word}.", f"Plural of {word}?"])
    return Item(question, answer, f"The plural of {word} is {answer}.")


def past_tense(r: Random, _: float) -> Item:
    verb = _key(r, words.PAST_TENSES)
    answer = words.PAST_TENSES[verb]
    question = r.choice(
        [f"What is the past tense of {verb}?", f"Give the past tense of {verb}.", f"Past tense of {verb}?"]
    )
    return Item(question, answer, f"The past tense of {verb} is {answer}.")


def sound(r: Random, _: float) -> Item:
    animal = _key(r, words.SOUNDS)
    answer = words.SOUNDS[animal]
    beast = with_article(animal)
    question = r.choice([f"What sound does {beast} make?", f"What does {beast} say?"])
    return Item(question, answer, f"{capitalized(beast)} says {answer}.")


def kind(r: Random, _: float) -> Item:
    word = _key(r, words.KIND_OF)
    answer = words.KIND_OF[word]
    question = r.choice(
        [
            f"What kind of thing is {word}?",
            f"Which category does {word} belong to?",
            f"Is {word} a fruit, a tool, an animal or something else?",
        ]
    )
    return Item(question, answer, f"The word {word} is a kind of {answer}.")


def synonym(r: Random, _: float) -> Item:
    word = _key(r, words.SYNONYMS)
    answer = words.SYNONYMS[word]
    question = r.choice([f"Give a synonym for {word}.", f"What is another word for {word}?"])
    return Item(question, answer, f"Another word for {word} is {answer}.")


def translation(r: Random, _: float) -> Item:
    language = r.choice(list(words.TRANSLATIONS))
    word = _key(r, words.TRANSLATIONS[language])
    answer = words.TRANSLATIONS[language][word]
    question = r.choice(
        [
            f"Translate {word} to {language}.",
            f"What is {word} in {language}?",
            f"How do you say {word} in {language}?",
        ]
    )
    return Item(question, answer, f"The {language} word for {word} is {answer}.")


def trivia(r: Random, _: float) -> Item:
    question = _key(r, words.TRIVIA)
    answer = words.TRIVIA[question]
    return Item(question, answer, f"The answer is {answer}.")


def next_in_line(r: Random, _: float) -> Item:
    name, line = r.choice([("day", words.DAYS), ("month", words.MONTHS), ("season", words.SEASONS)])
    i, side = r.randrange(len(line)), r.choice(["after", "before"])
    answer = line[(i + (1 if side == "after" else -1)) % len(line)]
    question = r.choice([f"Which {name} comes {side} {line[i]}?", f"What {name} is {side} {line[i]}?"])
    return Item(question, answer, f"The {name} {side} {line[i]} is {answer}.")


FACTS = [
    Skill("capital", (4, 8), capital, True),
    Skill("country", (2.5, 5), country_of, True),
    Skill("color", (2, 4), color, True),
    Skill("opposite", (3, 6), opposite, True),
    Skill("plural", (1.5, 3), plural, True),
    Skill("past tense", (1.5, 3), past_tense, True),
    Skill("sound", (1, 2), sound, True),
    Skill("kind", (2.5, 5), kind, True),
    Skill("synonym", (1, 2), synonym, True),
    Skill("translation", (2, 4), translation, True),
    Skill("trivia", (2, 4), trivia, True),
    Skill("next in line", (1.5, 3), next_in_line, True),
]


def any_fact(r: Random) -> Item:
    return r.choice(FACTS).draw(r, 1.0)
