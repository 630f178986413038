"""Greedy answers for a list of conversations, many at a time."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 128


def load(path: str) -> tuple[Any, Any]:
    """Model (in float32, for the CPU) and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def user(question: str, system: str | None = None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _prompt(tokenizer: Any, messages: list[dict[str, str]], tools: Any) -> str:
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)


@torch.no_grad()
def _answer_batch(model: Any, tokenizer: Any, prompts: list[str], max_new: int, seed: int | None) -> list[str]:
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    sampling: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "top_k": 0}
    output: Tensor = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=max_new,
        **sampling,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def answers(
    model: Any,
    tokenizer: Any,
    conversations: list[list[dict[str, str]]],
    tools: Any = None,
    max_new: int = 64,
    seed: int | None = None,
) -> list[str]:
    """The model's answers: the likeliest ones, or with a seed sampled at temperature 1."""
    prompts = [_prompt(tokenizer, messages, tools) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    for low in range(0, len(order), BATCH):
        batch = order[low : low + BATCH]
        texts = _answer_batch(model, tokenizer, [prompts[i] for i in batch], max_new, seed)
        for i, text in zip(batch, texts, strict=True):
            found[i] = text
    return found
