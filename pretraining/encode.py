"""Writes the corpus as token ids, for train.py.

python -m pretraining.encode --tokenizer caesura/assets/caesura-tiny --out /tmp/pretraining/corpus.npz
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pretraining.corpus import draw_corpus
from pretraining.render import render

STAGES = [(1, 640_000), (2, 130_000)]
"""Seed and number of conversations of the two stages of the training."""


def encode_corpus(tokenizer: Tokenizer, stage: int, count: int) -> dict[str, np.ndarray]:
    """`ids` of all conversations end to end, `trained` marks beside them, and `lengths`."""
    ids: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    lengths: list[int] = []
    conversations = draw_corpus(STAGES[stage][0], count, stage)
    while group := list(islice(conversations, 10_000)):
        rendered = [render(conversation) for conversation in group]
        texts = [piece.text for pieces in rendered for piece in pieces]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for pieces in rendered:
            parts = [next(encoded).ids for _ in pieces]
            ids.append(np.array([i for part in parts for i in part], np.uint16))
            repeats = [len(part) for part in parts]
            marks.append(np.repeat(np.array([piece.trained for piece in pieces], np.bool_), repeats))
            lengths.append(sum(repeats))
    return {
        "ids": np.concatenate(ids),
        "trained": np.concatenate(marks),
        "lengths": np.array(lengths, np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", type=int, choices=[1, 2], default=1)
    parser.add_argument("--conversations", type=int, help="fewer, to try something out")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    stage = args.stage - 1
    corpus = encode_corpus(tokenizer, stage, args.conversations or STAGES[stage][1])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.out, **corpus)
    num_tokens, num_trained = len(corpus["ids"]), int(corpus["trained"].sum())
    print(f"{len(corpus['lengths'])} conversations, {num_tokens} tokens, {num_trained} trained")


if __name__ == "__main__":
    main()
