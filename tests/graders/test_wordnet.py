"""The shipped words: by fixed values and, where Debian's `wordnet-base` is installed, beside nltk's own reader."""

from __future__ import annotations

import lzma
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import nltk
import pytest
from nltk.corpus import WordNetCorpusReader
from nltk.translate.meteor_score import meteor_score

from caesura.graders.similarity import similarity
from caesura.graders.wordnet import Synset, load_wordnet
from tests.graders.test_similarity import PAIRS, tokens
from wordnet.build import PARTS_OF_SPEECH, make_table, read_lines

DATABASE = Path("/usr/share/wordnet")
needs_database = pytest.mark.skipif(not DATABASE.exists(), reason="needs the database: apt-get install wordnet-base")

#: What nltk's WordNetCorpusReader over WordNet 3.0 says.
SYNONYMS = {
    "buy": "bargain bribe buy corrupt purchase steal",
    "buys": "bargain bribe buy corrupt purchase steal",
    "bought": "bribe buy corrupt purchase",
    "purchasing": "buy buying purchase purchasing",
    "quick": "agile fast flying immediate nimble prompt promptly quick quickly ready speedy spry straightaway warm",
    "happily": "blithely gayly happily jubilantly merrily mirthfully",
    "car": "auto automobile car gondola machine motorcar railcar",
    "automobiles": "auto automobile car machine motorcar",
    "children": "baby child fry kid minor nestling nipper shaver tiddler tike tyke youngster",
    "comics": "comedian comic funnies strip",
    "bases-on-balls": "pass walk",
    "mice": "mouse shiner",
    "wolves": "Wolf beast brute masher savage wildcat wolf",
    "women": "char charwoman woman womanhood",
    "geese": "bozo cuckoo fathead goof goofball goose jackass twat zany",
    "axes": "Axis ax axe axis bloc",
    "einstein": "Einstein brain brainiac genius mastermind",
    "galore": "abounding galore",
    "studied": "analyse analyze canvas canvass consider contemplate examine learn meditate read studied study take",
    "lying": "consist dwell fabrication lie lying prevarication rest",
    "gladder": "beaming glad happy",
    "xyzzy": "",
    "zs": "Z ezed izzard omega z zed zee",
    "": "",
}
#: As they come from rules, right ones and wrong ones.
ENDINGS = ("", "s", "es", "ies", "ves", "men", "ed", "d", "ing", "er", "est", "r", "st")


class Reader(Protocol):
    def synsets(self, word: str) -> list[Synset]: ...


def synonyms(reader: Reader, word: str) -> set[str]:
    """Without words of several parts, which METEOR passes over."""
    return {lemma.name() for synset in reader.synsets(word) for lemma in synset.lemmas() if "_" not in lemma.name()}


@pytest.fixture(scope="module")
def nltk_reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """nltk reads below its data path alone, and wants two files besides, whose content does not matter here."""
    root = tmp_path_factory.mktemp("nltk_data")
    corpus = root / "corpora" / "wordnet"
    corpus.mkdir(parents=True)
    for path in DATABASE.iterdir():
        if path.is_file():
            shutil.copy(path, corpus)
    (corpus / "index.sense").touch()
    (corpus / "lexnames").write_text("".join(f"{number:02} name 1\n" for number in range(45)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(root)])
        yield WordNetCorpusReader(str(corpus), omw_reader=object())


def all_words() -> list[str]:
    """The single words of the database and its irregular forms."""
    files = [f"{kind}{part}{end}" for part in PARTS_OF_SPEECH for kind, end in (("index.", ""), ("", ".exc"))]
    lines = [line for file in files for line in read_lines(DATABASE / file) if not line.startswith(" ")]
    return sorted({word for line in lines if "_" not in (word := line.split()[0])})


@pytest.mark.parametrize("word", SYNONYMS)
def test_a_word_has_the_synonyms_of_wordnet(word: str) -> None:
    assert synonyms(load_wordnet(), word) == set(SYNONYMS[word].split())


def test_upper_and_lower_case_are_the_same() -> None:
    assert synonyms(load_wordnet(), "BuYs") == synonyms(load_wordnet(), "buys")


def test_the_words_are_read_once() -> None:
    assert load_wordnet() is load_wordnet()


@needs_database
def test_words_and_their_inflections_have_the_synonyms_that_nltk_names(nltk_reader: Reader) -> None:
    """One in forty of all that can be made of the words, with and without their last letter, and ENDINGS."""
    r = random.Random(0)
    words = [stem + ending for word in all_words() for stem in {word, word[:-1]} for ending in ENDINGS]
    words = r.sample(words, len(words) // 40)

    assert len(words) > 50_000
    assert not {word for word in words if synonyms(load_wordnet(), word) != synonyms(nltk_reader, word)}


@needs_database
def test_irregular_forms_have_the_synonyms_that_nltk_names(nltk_reader: Reader) -> None:
    lines = [line for part in PARTS_OF_SPEECH for line in read_lines(DATABASE / f"{part}.exc")]
    words = {word for line in lines if "_" not in (word := line.split()[0])}

    assert len(words) > 5_000
    assert not {word for word in words if synonyms(load_wordnet(), word) != synonyms(nltk_reader, word)}


@needs_database
@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_meteor_is_what_nltk_says_with_its_own_reader(text: str, reference: str, nltk_reader: Reader) -> None:
    expected = meteor_score([tokens(reference)], tokens(text), wordnet=nltk_reader)

    assert similarity("meteor", text, reference) == pytest.approx(expected, abs=1e-6)


@needs_database
def test_the_shipped_table_is_the_one_that_the_script_makes() -> None:
    shipped = Path(__file__).parents[2] / "caesura/assets/wordnet/words.txt.xz"

    assert lzma.decompress(shipped.read_bytes()).decode() == make_table(DATABASE)
