from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer

from caesura.inference.text import Decode, Detokenizer, StopStrings, decoder_of
from caesura.settings import EMBEDDED_BASE_PATH

TOKENIZER = Tokenizer.from_file(str(EMBEDDED_BASE_PATH / "tokenizer.json"))
MARKERS = ("<tool_call>", "</tool_call>")
WORDS = ["", " one", " two", " three"]


def decode_bytes(token_ids: list[int]) -> str:
    return TOKENIZER.decode(token_ids, skip_special_tokens=True)


def decode_words(token_ids: list[int]) -> str:
    """As decoders in SentencePiece's manner do: the first word loses its space. Token 0 is special and skipped."""
    return "".join(WORDS[id] for id in token_ids).removeprefix(" ")


def pass_through(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    return [*pieces, detokenizer.rest()]


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=60))
def test_the_pieces_of_any_tokens_are_together_the_decode_of_all_tokens(token_ids: list[int]) -> None:
    assert "".join(pass_through(Detokenizer(decode_bytes), token_ids)) == decode_bytes(token_ids)


@given(st.text(alphabet=st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=30))
def test_no_piece_of_a_text_holds_half_a_character(text: str) -> None:
    pieces = pass_through(Detokenizer(decode_bytes), TOKENIZER.encode(text, add_special_tokens=False).ids)

    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    token_ids = TOKENIZER.encode("😀").ids[:1]

    assert pass_through(Detokenizer(decode_bytes), token_ids) == ["", "\ufffd"]


@given(st.lists(st.integers(0, 3)))
def test_a_decoder_that_drops_the_space_of_the_first_token_drops_no_other(token_ids: list[int]) -> None:
    assert "".join(pass_through(Detokenizer(decode_words), token_ids)) == decode_words(token_ids)


@given(st.lists(st.text("abc")), st.text("abc", min_size=1, max_size=4))
def test_text_ends_before_the_stop_string_however_it_is_cut(pieces: list[str], stop: str) -> None:
    stops = StopStrings((stop,))
    told = ""
    for piece in pieces:
        told += stops.add(piece)
        if stops.found:
            break

    before, found, _ = "".join(pieces).partition(stop)
    assert told + stops.rest() == before
    assert stops.found == bool(found)


@pytest.mark.parametrize(("text", "told"), [("so", "so"), ("so\n", "so"), ("so\n\nmore", "so"), ("a\n\nb\n", "a\n\nb")])
def test_only_what_may_be_the_start_of_a_stop_string_is_held_back(text: str, told: str) -> None:
    assert StopStrings(("\n\nEND", "\n\nmore")).add(text) == told


def test_of_several_stop_strings_in_one_piece_the_first_one_ends_the_text() -> None:
    assert StopStrings(("three", "two")).add("one two three") == "one "


def tokenizer_with_markers() -> Any:
    """The embedded base's, whose markers of calls are special tokens here, as they are in some others."""
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_BASE_PATH)
    tokenizer.add_tokens([AddedToken(marker, special=True) for marker in MARKERS], special_tokens=True)
    return tokenizer


def test_a_decoder_leaves_special_tokens_out_except_the_markers() -> None:
    tokenizer = tokenizer_with_markers()
    token_ids = tokenizer("a <tool_call>é😀</tool_call><tool_call> b")["input_ids"]
    end = [tokenizer.eos_token_id]

    assert decoder_of(tokenizer, MARKERS)(token_ids + end) == "a <tool_call>é😀</tool_call><tool_call> b"
    assert decoder_of(tokenizer)(token_ids + end) == "a é😀 b"
    assert decoder_of(tokenizer, ("<no token>",))(token_ids + end) == "a é😀 b"


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=40))
def test_a_decoder_gives_what_the_tokenizer_of_transformers_gives(token_ids: list[int]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_BASE_PATH)
    # It changes text as more of it comes, if it is let.
    tokenizer.clean_up_tokenization_spaces = False

    assert decoder_of(tokenizer)(token_ids) == tokenizer.decode(token_ids, skip_special_tokens=True)


def test_the_pieces_of_tokens_with_markers_are_together_the_decode_of_all_of_them() -> None:
    tokenizer = tokenizer_with_markers()
    decode: Decode = decoder_of(tokenizer, MARKERS)
    token_ids = tokenizer("ab<tool_call>😀</tool_call> c")["input_ids"]

    pieces = pass_through(Detokenizer(decode), token_ids)

    assert "".join(pieces) == decode(token_ids)
    assert "<tool_call>" in pieces


def test_a_slow_tokenizer_decodes_by_itself() -> None:
    tokenizer: Any = ByT5Tokenizer()

    assert decoder_of(tokenizer, MARKERS)(tokenizer("é<b> ")["input_ids"]) == "é<b> "
