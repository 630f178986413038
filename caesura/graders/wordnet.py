"""The synonyms of English words, from WordNet 3.0 (Princeton University; its licence lies beside the words).

nltk's METEOR asks a reader of WordNet for no more than `synsets(word)`, their `lemmas()` and the lemmas' `name()`.
`WordNet` answers that from a small table within the package, and for every single word it names the same synonyms as
`nltk.corpus.WordNetCorpusReader` over the whole database. `wordnet/build.py` makes the table.
"""

from __future__ import annotations

import lzma
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

#: Endings of inflected forms and what stands in their place, in the order of the table's parts of speech: nouns, verbs,
#: adjectives, adverbs. Source: morphy(7WN), "Rules of Detachment"; with nltk, `ves` → `f` besides.
_ENDINGS = (
    (
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
        *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ),
    (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    (),
)


@dataclass(frozen=True, slots=True)
class Lemma:
    """A word as it stands in a synset: `Einstein` keeps its capital."""

    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class Synset:
    """Words that share a meaning."""

    words: str

    def lemmas(self) -> list[Lemma]:
        return [Lemma(word) for word in self.words.split()]


class PartOfSpeech:
    """The synsets of the nouns (or verbs, adjectives, adverbs), and how an inflected form is led back to its bases."""

    def __init__(
        self, synsets: dict[str, list[str]], exceptions: dict[str, list[str]], endings: tuple[tuple[str, str], ...]
    ) -> None:
        #: By each of its words, in lower case.
        self._synsets = synsets
        self._exceptions = exceptions
        self._endings = endings

    def synsets(self, form: str) -> list[Synset]:
        """Of `form`, in lower case, and of its bases. Where `form` is irregular, no rule is asked for its bases."""
        bases = self._exceptions.get(form)
        if bases is None:
            bases = [form.removesuffix(old) + new for old, new in self._endings if form.endswith(old)]
        return [Synset(words) for base in dict.fromkeys([form, *bases]) for words in self._synsets.get(base, ())]


class WordNet:
    """What METEOR needs of a WordNet reader. Safe to share between threads: nothing changes after it was built."""

    def __init__(self, parts: list[PartOfSpeech]) -> None:
        self._parts = parts

    def synsets(self, word: str) -> list[Synset]:
        """Of every part of speech, in no order that means anything; empty for an unknown word."""
        form = word.lower()
        return [synset for part in self._parts for synset in part.synsets(form)]


@cache
def load_wordnet() -> WordNet:
    """Read the table of the package: a block of synsets and one of irregular forms for each part of speech."""
    table = lzma.decompress(files("caesura").joinpath("assets/wordnet/words.txt.xz").read_bytes()).decode("ascii")
    blocks = [block.split("\n") for block in table.split("\n\n")]
    pairs = zip(blocks[::2], blocks[1::2], _ENDINGS, strict=True)
    return WordNet([_build(synsets, exceptions, endings) for synsets, exceptions, endings in pairs])


def _build(synsets: list[str], exceptions: list[str], endings: tuple[tuple[str, str], ...]) -> PartOfSpeech:
    by_word: defaultdict[str, list[str]] = defaultdict(list)
    for words in synsets:
        for word in words.lower().split():
            by_word[word].append(words)
    bases = {form: rest for form, *rest in map(str.split, exceptions)}
    return PartOfSpeech(dict(by_word), bases, endings)
