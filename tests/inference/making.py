"""Answers that are made in the thread of the test, without an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from caesura.inference.answer import Answer
from caesura.inference.batch import Batch, Member, Outcome
from caesura.inference.engine import ChatRequest, CompletionRequest, Finished, Piece, Text, TokenLogprob
from caesura.inference.library import Library, Loaded
from caesura.inference.prepare import prepare
from caesura.inference.tools import find_format
from caesura.models.decoding import build_decoder
from caesura.models.loading import Base
from caesura.settings import Settings
from caesura.storage import LocalStorage

M = TypeVar("M", bound=Member)


def make(library: Library, request: ChatRequest | CompletionRequest) -> list[Piece]:
    """All pieces of all answers to the request, which is alone in its batch."""
    return finish(prepare(library, request))


def finish(answers: Sequence[Answer]) -> list[Piece]:
    """All pieces of these answers of one base model, which are made together."""
    pieces = [piece for answer in answers for piece in answer.begin()]
    waiting = [answer for answer in answers if not answer.is_finished]
    batch: Batch[Answer] = Batch(answers[0].script.decoder)
    while waiting or batch.members:
        for _, outcome in advance(batch, waiting):
            if isinstance(outcome, Exception):
                raise outcome
            pieces += outcome
    return pieces


def advance(batch: Batch[M], waiting: list[M]) -> list[tuple[M, Outcome]]:
    """A step of the batch; those who wait join as soon as they may."""
    waiting[:0] = batch.crowd_out()
    outcomes = batch.step() if batch.members else []
    joining = batch.choose(waiting)
    del waiting[: len(joining)]
    return outcomes + batch.join(joining)


def text_of(pieces: Sequence[Piece], index: int = 0) -> str:
    """The text of the answer with this index."""
    return "".join(piece.text for piece in pieces if isinstance(piece, Text) and piece.index == index)


def finish_of(pieces: Sequence[Piece], index: int = 0) -> Finished:
    (finished,) = (piece for piece in pieces if isinstance(piece, Finished) and piece.index == index)
    return finished


def logprobs_of(pieces: Sequence[Piece], index: int = 0) -> list[TokenLogprob]:
    return [one for piece in pieces if isinstance(piece, Text) and piece.index == index for one in piece.logprobs]


def library_of(base: Base) -> Library:
    """A library that has this base and no other."""
    library = Library(Settings(data_dir=Path("none")), LocalStorage(Path("none")))
    template: Any = base.tokenizer.chat_template
    library._bases[base.name] = Loaded(base, _decoder(base.model), find_format(template))
    return library


def changed(library: Library, **changes: Any) -> Library:
    """The library, whose base `micro` is another in this."""
    loaded = library.base("micro")
    library._bases["micro"] = replace(loaded, base=replace(loaded.base, **changes))
    return library


# It takes the model over, and several bases share one.
_decoder = cache(build_decoder)


@cache
def plain_model(folder: Path) -> Any:
    """The model as `transformers` has it."""
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def plain_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """What `transformers` makes of the tokens in one pass, [T, V]."""
    return model(torch.tensor([list(token_ids)])).logits[0]


def greedy_ids(model: Any, prompt_ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """What the loop of `transformers` generates."""
    prompt = torch.tensor([list(prompt_ids)])
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=max_new_tokens)
    return ids[0, prompt.shape[1] :].tolist()
