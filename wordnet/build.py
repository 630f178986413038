"""Makes the word table of `caesura/graders/wordnet.py` from the database files of Princeton WordNet 3.0.

    python -m wordnet.build --database /usr/share/wordnet --out caesura/assets/wordnet

The table keeps what METEOR asks for: which single words are synonyms, and which irregular forms a word has. Words of
several parts (`ice_cream`), definitions and relations are left out. Same database, same bytes.
"""

from __future__ import annotations

import argparse
import lzma
import re
from pathlib import Path

#: In the order of the table.
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
#: Some adjectives say where they may stand, such as `galore(ip)`; that is no part of the word.
MARKER = re.compile(r"\((a|p|ip)\)$")


def read_exceptions(lines: list[str]) -> set[str]:
    """The irregular forms of an `exc` file that are single words: form, then base forms. A form's last line counts."""
    return set({line.split()[0]: line.strip() for line in lines if "_" not in line.split()[0]}.values())


def multi_word_bases(exceptions: set[str]) -> set[str]:
    """What single words come from, such as `comic_strip` of `comics`: without it, its synonyms would not be found."""
    return {base for line in exceptions for base in line.split()[1:] if "_" in base}


def read_synsets(lines: list[str], multi_words: set[str]) -> set[str]:
    """The single words and the `multi_words` of each synset of a `data` file (its format: wndb(5WN)).

    A synset is a line, its words parted by blanks; equal synsets count once.
    """
    synsets: set[str] = set()
    for line in lines:
        if line.startswith(" "):
            continue
        fields = line.split()
        num_words = int(fields[3], 16)
        words = [MARKER.sub("", word) for word in fields[4 : 4 + 2 * num_words : 2]]
        synsets.add(" ".join(word for word in words if "_" not in word or word.lower() in multi_words))
    return synsets - {""}


def read_license(lines: list[str]) -> str:
    """The licence that every `data` file begins with, without its line numbers."""
    numbered = [line for line in lines if line.startswith(" ")]
    return "\n".join(re.sub(r"^ +\d+ ?", "", line).rstrip() for line in numbered) + "\n"


def read_lines(path: Path) -> list[str]:
    return path.read_text("latin-1").splitlines()


def make_table(database: Path) -> str:
    """For each part of speech a block of synsets and one of irregular forms; lines sorted, blocks parted by a line."""
    blocks: list[set[str]] = []
    for part in PARTS_OF_SPEECH:
        exceptions = read_exceptions(read_lines(database / f"{part}.exc"))
        synsets = read_synsets(read_lines(database / f"data.{part}"), multi_word_bases(exceptions))
        blocks += [synsets, exceptions]
    return "\n\n".join("\n".join(sorted(block)) for block in blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True, help="the folder of data.noun, noun.exc, …")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    table = make_table(arguments.database).encode("ascii")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "words.txt.xz").write_bytes(lzma.compress(table, preset=9 | lzma.PRESET_EXTREME))
    (arguments.out / "LICENSE").write_text(read_license(read_lines(arguments.database / "data.noun")))


if __name__ == "__main__":
    main()
