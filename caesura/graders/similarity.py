"""How alike two texts are, from 0 to 1, by the metrics that OpenAI's `text_similarity` grader names.

| metric | what it is |
|---|---|
| `fuzzy_match` | rapidfuzz's `fuzz.WRatio`: the best of several edit similarities of characters |
| `bleu` | sacrebleu's `sentence_bleu` with its defaults (Papineni et al., 2002) |
| `gleu` | nltk's `sentence_gleu` (Wu et al., 2016, arXiv:1609.08144) |
| `meteor` | nltk's `meteor_score` (Lavie and Agarwal, 2007), synonyms from WordNet 3.0 |
| `rouge_1` … `rouge_5`, `rouge_l` | rouge-score's F-measure, no stemming as is its default (Lin, 2004) |

gleu and meteor take tokens and leave open which. Here they get sacrebleu's `13a`, as bleu does and as Hugging Face's
`google_bleu`: it needs no data, and it parts a full stop from its word in the middle of a text too, which nltk's
tokenizers do only after a sentence splitter that must be downloaded. Upper and lower case differ for fuzzy_match, bleu
and gleu. rouge sees the letters a to z and digits alone: texts in another script score 0.

nltk's meteor looks for synonyms among stems: it knows that `car` is an `auto`, but not that to `buy` is to `purchase`,
whose stem is `purchas`. That is kept, so that a score is the one that nltk gives.

A text without tokens scores 0, also beside itself. Equal texts score 1 where they have a token (for rouge_n: n tokens);
meteor stays below by its penalty for fragments, to 1 - 0.5 / num_tokens³.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import IO, Literal, Protocol, cast

import sacrebleu
from nltk.translate import gleu_score, meteor_score
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from rouge_score import rouge_scorer, scoring, tokenizers
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

from caesura.graders.wordnet import WordNet, load_wordnet

Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]

#: Of both texts together. That takes below a second, some five at worst for meteor (words of many meanings), and up to
#: half a minute for fuzzy_match, which looks for a short text at every place of a long one.
MAX_CHARACTERS = 200_000


class TooLong(ValueError):
    """Texts that could take very long to compare. The message has their lengths, the limit and a remedy."""


def similarity(metric: Metric, text: str, reference: str) -> float:
    """How alike `text` and `reference` are by `metric`, from 0 to 1.

    The first meteor score of a process reads WordNet's words, which takes some 0.2 s. Raises TooLong.
    """
    num_characters = len(text) + len(reference)
    if num_characters > MAX_CHARACTERS:
        raise TooLong(
            f"{metric} compares texts of at most {MAX_CHARACTERS:,} characters together, and these have "
            f"{len(text):,} and {len(reference):,}. Please shorten them."
        )
    # bleu of equal texts is greater than 1 by a rounding error.
    return min(1.0, _SCORERS[metric](text, reference))


def _fuzzy_match(text: str, reference: str) -> float:
    return fuzz.WRatio(text, reference) / 100


def _bleu(text: str, reference: str) -> float:
    score = sacrebleu.sentence_bleu(text, [reference]).score / 100
    _forget_texts()
    return score


def _gleu(text: str, reference: str) -> float:
    return _sentence_gleu([_tokens(reference)], _tokens(text))


def _meteor(text: str, reference: str) -> float:
    return _meteor_score([_tokens(reference)], _tokens(text), wordnet=load_wordnet())


def _rouge_n(n: int) -> Callable[[str, str], float]:
    # With a tokenizer given, the scorer does not log that it takes its own.
    scorer = cast(_RougeScorer, rouge_scorer.RougeScorer([f"rouge{n}"], tokenizer=_ROUGE_TOKENIZER))
    return lambda text, reference: scorer.score(reference, text)[f"rouge{n}"].fmeasure


def _rouge_l(text: str, reference: str) -> float:
    """As rouge-score does, whose own is a table of all pairs of tokens in Python: slow, gigabytes for long texts."""
    tokens, reference_tokens = _ROUGE_TOKENIZER.tokenize(text), _ROUGE_TOKENIZER.tokenize(reference)
    if not tokens or not reference_tokens:
        return 0.0
    common = LCSseq.similarity(tokens, reference_tokens)
    return _f_measure(common / len(tokens), common / len(reference_tokens))


def _tokens(text: str) -> list[str]:
    tokens = Tokenizer13a()(text).split()
    _forget_texts()
    return tokens


def _forget_texts() -> None:
    """sacrebleu keeps the last 65,536 texts that it split: in a server, gigabytes."""
    Tokenizer13a.__call__.cache_clear()
    TokenizerRegexp.__call__.cache_clear()


class _Gleu(Protocol):
    def __call__(self, references: Sequence[Sequence[str]], hypothesis: Sequence[str]) -> float: ...


class _Meteor(Protocol):
    def __call__(
        self, references: Sequence[Sequence[str]], hypothesis: Sequence[str], *, wordnet: WordNet
    ) -> float: ...


class _Tokenizer(Protocol):
    def tokenize(self, text: str) -> list[str]: ...


class _RougeScore(Protocol):
    fmeasure: float


class _RougeScorer(Protocol):
    def score(self, target: str, prediction: str) -> dict[str, _RougeScore]: ...


# nltk and rouge-score ship no types: these say what is used of them.
_sentence_gleu = cast(_Gleu, gleu_score.sentence_gleu)  # pyright: ignore[reportUnknownMemberType]
_meteor_score = cast(_Meteor, meteor_score.meteor_score)
_f_measure = cast(Callable[[float, float], float], scoring.fmeasure)  # pyright: ignore[reportUnknownMemberType]
_ROUGE_TOKENIZER = cast(_Tokenizer, tokenizers.DefaultTokenizer(use_stemmer=False))

_SCORERS: dict[Metric, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    "rouge_1": _rouge_n(1),
    "rouge_2": _rouge_n(2),
    "rouge_3": _rouge_n(3),
    "rouge_4": _rouge_n(4),
    "rouge_5": _rouge_n(5),
    "rouge_l": _rouge_l,
}


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Answers `[metric, text, reference]`, a line each, with `{"score"}` or `{"fault"}`, until there are no more."""
    for line in requests:
        metric, text, reference = json.loads(line)
        try:
            reply: dict[str, object] = {"score": similarity(metric, text, reference)}
        except TooLong as error:
            reply = {"fault": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
