from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, TopPLogitsWarper

from caesura.errors import InvalidRequest
from caesura.inference.engine import ChatRequest, Finished, Text
from caesura.inference.library import Library
from caesura.inference.sampler import draw_token, encode_prompt, generate, sample_tokens
from caesura.jobs import Artifact
from caesura.models.loading import Base

GREEDY = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=40)
SAMPLED = replace(GREEDY, temperature=1.0, seed=7)
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Wie geht's? 😀"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three " * 60},
    ],
]


@pytest.fixture
def base(library: Library) -> Base:
    return library.use("micro", None)


def answer(base: Base, request: ChatRequest) -> tuple[str, Finished]:
    *texts, finished = generate(base, request)
    assert isinstance(finished, Finished)
    assert all(isinstance(text, Text) for text in texts)
    return "".join(text.text for text in texts if isinstance(text, Text)), finished


def reference_ids(model: Any, base: Base, request: ChatRequest) -> list[int]:
    """What transformers' own loop generates, greedily."""
    prompt = torch.tensor([encode_prompt(base, request)])
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40)
    return ids[0, prompt.shape[1] :].tolist()


def decode(base: Base, token_ids: list[int]) -> str:
    return base.tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_greedy_answer_is_that_of_transformers(base: Base, micro_model: Path, messages: list[dict[str, Any]]) -> None:
    request = replace(GREEDY, messages=messages)
    expected = reference_ids(AutoModelForCausalLM.from_pretrained(micro_model), base, request)

    text, finished = answer(base, request)

    assert text == decode(base, expected)
    assert finished.completion_tokens == len(expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
def test_a_greedy_answer_with_an_adapter_is_that_of_peft(
    library: Library, artifacts: list[Artifact], micro_model: Path, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(micro_model)
    peft = PeftModel.from_pretrained(plain, tmp_path / "blobs" / artifacts[0].prefix)
    base = library.use("micro", artifacts[0])

    text, _ = answer(base, GREEDY)

    assert text == decode(base, reference_ids(peft, base, GREEDY))
    assert text != answer(library.use("micro", None), GREEDY)[0]


def test_the_pieces_of_an_answer_are_together_the_decode_of_its_tokens(base: Base) -> None:
    generator = torch.Generator().manual_seed(7)
    tokens = sample_tokens(base.model, encode_prompt(base, SAMPLED), lambda V: draw_token(V, 1.0, generator))
    request = replace(SAMPLED, max_tokens=200)

    text, _ = answer(base, request)

    assert text == decode(base, list(islice(tokens, 200)))
    assert "\ufffd" in text  # the model is random: bytes that are no characters are among its tokens


def test_the_same_seed_gives_the_same_answer_whatever_was_drawn_before(base: Base) -> None:
    first = answer(base, SAMPLED)
    torch.rand(5)
    answer(base, replace(SAMPLED, seed=1))

    assert answer(base, SAMPLED) == first


def test_another_seed_gives_another_answer(base: Base) -> None:
    assert answer(base, SAMPLED) != answer(base, replace(SAMPLED, seed=8))


def test_without_a_seed_every_answer_is_another(base: Base) -> None:
    request = replace(SAMPLED, seed=None)

    assert answer(base, request) != answer(base, request)


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_every_seed_that_the_api_takes_is_one(base: Base, seed: int) -> None:
    answer(base, replace(SAMPLED, seed=seed))


@pytest.mark.parametrize("changes", [{"top_p": 0.0}, {"temperature": 1e-9}, {"temperature": 1e-4}])
def test_a_top_p_or_temperature_next_to_nothing_is_greedy(base: Base, changes: dict[str, float]) -> None:
    assert answer(base, replace(SAMPLED, **changes)) == answer(base, GREEDY)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.85, 0.99])
def test_top_p_draws_from_the_tokens_that_transformers_keeps(top_p: float) -> None:
    logits_V = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5, -3.0])
    kept = TopPLogitsWarper(top_p)(torch.empty(0), logits_V[None])[0].isfinite().nonzero().flatten()
    generator = torch.Generator().manual_seed(0)

    drawn = {draw_token(logits_V, top_p, generator) for _ in range(1000)}

    assert drawn == set(kept.tolist())


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probs_V = torch.tensor([0.5, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)

    drawn = [draw_token(probs_V.log(), 0.8, generator) for _ in range(4000)]

    # Of 0.5 and 0.3 alone: 0.625 and 0.375; the standard deviation is 0.008.
    assert drawn.count(0) / 4000 == pytest.approx(0.625, abs=0.03)
    assert drawn.count(2) == 0


def test_max_tokens_ends_the_answer_with_length(base: Base) -> None:
    _, finished = answer(base, replace(GREEDY, max_tokens=3))

    assert finished == Finished("length", prompt_tokens=10, completion_tokens=3)


def test_the_context_window_ends_the_answer_with_length(base: Base) -> None:
    _, finished = answer(replace(base, context_window=15), GREEDY)

    assert finished == Finished("length", prompt_tokens=10, completion_tokens=5)


def test_a_prompt_that_leaves_room_for_one_token_gets_one(base: Base) -> None:
    assert answer(replace(base, context_window=11), GREEDY)[1].completion_tokens == 1


def test_a_prompt_that_leaves_no_room_is_refused(base: Base) -> None:
    with pytest.raises(InvalidRequest) as raised:
        answer(replace(base, context_window=10), GREEDY)

    assert raised.value.message == (
        "This model's maximum context length is 10 tokens. However, your messages resulted in 10 tokens. "
        "Please reduce the length of the messages."
    )
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")


def test_an_end_token_ends_the_answer_and_is_counted_but_not_told(base: Base, micro_model: Path) -> None:
    token_ids = reference_ids(AutoModelForCausalLM.from_pretrained(micro_model), base, GREEDY)
    end = next(index for index, (before, now) in enumerate(pairwise(token_ids), 1) if now != before)
    ending = replace(base, eos_token_ids=frozenset({token_ids[end]}))

    text, finished = answer(ending, GREEDY)

    assert text == decode(base, token_ids[:end])
    assert finished == Finished("stop", prompt_tokens=10, completion_tokens=end + 1)


def test_a_stop_string_ends_the_answer_wherever_it_begins_and_however_many_tokens_it_spans(base: Base) -> None:
    request = replace(SAMPLED, max_tokens=12)
    whole, _ = answer(base, request)
    for start in range(len(whole)):
        for length in (1, 7):
            stop = whole[start : start + length]
            text, finished = answer(base, replace(request, stop=(stop,)))

            assert text == whole[: whole.index(stop)]
            assert finished.finish_reason == "stop"


def test_a_stop_string_that_only_begins_is_part_of_the_answer(base: Base) -> None:
    whole, _ = answer(base, SAMPLED)

    assert answer(base, replace(SAMPLED, stop=(whole[-3:] + "!",)))[0] == whole


def test_tools_are_in_the_prompt(base: Base) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]

    prompt = decode(base, encode_prompt(base, replace(GREEDY, tools=tools)))

    assert "get_weather" in prompt


@pytest.mark.parametrize("content", [[{"type": "image_url"}], 5, "\ud800"])
def test_messages_that_the_chat_template_does_not_take_are_refused(base: Base, content: Any) -> None:
    with pytest.raises(InvalidRequest, match="'micro'") as raised:
        answer(base, replace(GREEDY, messages=[{"role": "user", "content": content}]))

    assert raised.value.param == "messages"
