"""Trains the tokenizer on the corpus and writes its files, chat template included.

    python -m pretraining.tokenizer --out caesura/assets/caesura-tiny

Byte-level BPE. Digits and line ends stand alone: a number is read digit by digit, and the text of a turn
is split the same way whatever stands before and after it.
"""

import argparse
import json
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pretraining.corpus import RESERVED_WORDS, Conversation, draw_corpus
from pretraining.render import Piece, render

VOCABULARY_SIZE = 2048
CONTEXT = 4096
PAD, END = "<|endoftext|>", "<|im_end|>"
SPECIAL = [PAD, "<|im_start|>", END, *(f"<|reserved_{i}|>" for i in range(4))]
VISIBLE = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
"""Single tokens that are text all the same: decoding keeps them, so that a tool call can be read."""
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SEED = 7


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL + VISIBLE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    return Tokenizer.from_str(json.dumps(state))


def write_files(tokenizer: Tokenizer, out: Path) -> None:
    """tokenizer_config.json is written by hand: the class name must be one that transformers 4 knows too."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(TEMPLATE, out / "chat_template.jinja")


def encode_pieces(tokenizer: Any, pieces: list[Piece]) -> tuple[list[int], list[int]]:
    """Token ids and the mask of trained tokens."""
    ids, mask = [], []
    for piece in pieces:
        encoded = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ids += encoded
        mask += [int(piece.trained)] * len(encoded)
    return ids, mask


PARTS: Any = [{"type": "text", "text": "Hello,\n"}, {"type": "text", "text": "who are you?"}]
CALL: Any = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
CORNERS = [
    Conversation([{"role": "user", "content": PARTS}, {"role": "assistant", "content": "\n\n two lines\n"}]),
    Conversation(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
            {"role": "tool", "tool_call_id": "c", "content": PARTS},
            {"role": "assistant", "content": ""},
            {"role": "developer", "content": "Now in French."},
            {"role": "assistant", "content": "Looking. ", "tool_calls": [CALL]},
        ]
    ),
]
"""What the corpus never holds and the template must take: parts, objects as arguments, empty answers."""


def check_template(tokenizer: Any, conversations: list[Conversation]) -> None:
    """The template and render() agree, token for token and mask for mask."""
    for conversation in conversations:
        encoded = tokenizer.apply_chat_template(
            conversation.messages,
            tools=conversation.tools,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        ids, mask = encode_pieces(tokenizer, render(conversation))
        assert encoded["input_ids"] == ids, tokenizer.decode(encoded["input_ids"])
        assert encoded["assistant_masks"] == mask, tokenizer.decode(encoded["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=60_000)
    args = parser.parse_args()
    texts = ["".join(p.text for p in render(c)) for c in draw_corpus(SEED, args.conversations)]
    seen = re.search(rf"\b({'|'.join(RESERVED_WORDS)})\b", "\n".join(texts), re.IGNORECASE)
    assert not seen, f"the corpus shows the example style: {seen}"
    write_files(train_tokenizer(texts), args.out)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(args.out)
    assert len(tokenizer) == VOCABULARY_SIZE
    checked = list(islice(draw_corpus(SEED + 1, 600), 600)) + CORNERS
    check_template(tokenizer, checked)
    print(f"{len(tokenizer)} tokens; template and mask agree on {len(checked)} conversations")


if __name__ == "__main__":
    main()
