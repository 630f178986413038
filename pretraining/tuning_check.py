"""Tunes the model on the example style as a user would, and measures what it says before and after.

    python -m pretraining.tuning_check --model caesura/assets/caesura-tiny --rates 1e-3 2e-3 3e-3 5e-3

LoRA of rank 16 and alpha 32 on all linear layers, AdamW, batches of 8, 4 epochs over the 80 rows of
examples/style_train.jsonl. The held-out questions are facts that the base knows;
their answers stand in no row of the examples.
"""

import argparse
import json
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from pretraining.corpus import Conversation
from pretraining.examples import NUM_TRAIN, NUM_VALIDATION, TAUGHT, styled
from pretraining.facts import FACTS
from pretraining.generate import answers, load, user
from pretraining.items import Item
from pretraining.render import render
from pretraining.tokenizer import encode_pieces

EPOCHS, BATCH, RANK, ALPHA = 4, 8, 16, 32


def read_conversations(path: Path) -> list[Conversation]:
    return [Conversation(json.loads(line)["messages"]) for line in path.read_text("utf-8").splitlines()]


def held_out(rows: list[Conversation], count: int) -> list[Item]:
    """Facts of the taught skills whose styled answer stands in none of the rows."""
    seen = {row.messages[1]["content"] for row in rows}
    r = Random(99)
    skills = [skill for skill in FACTS if skill.name in TAUGHT]
    found: dict[str, Item] = {}
    while len(found) < count:
        item = r.choice(skills).draw(r, 1.0)
        if styled(item) not in seen:
            found[item.question] = item
    return list(found.values())


def score(model: Any, tokenizer: Any, items: list[Item]) -> tuple[float, float]:
    """Shares of greedy answers in the style, and of those that are right word for word."""
    said = answers(model, tokenizer, [user(item.question) for item in items])
    form = sum(text.startswith("Ahoy! ") and text.endswith(", matey!") for text in said)
    exact = sum(text == styled(item) for text, item in zip(said, items, strict=True))
    return form / len(items), exact / len(items)


def tune(model: Any, tokenizer: Any, rows: list[Conversation], rate: float, seed: int) -> Any:
    """Mean token loss over the answers; the rate warms up for a tenth and then falls in a straight line."""
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    encoded = [encode_pieces(tokenizer, render(row)) for row in rows]
    num_steps = EPOCHS * math.ceil(len(rows) / BATCH)
    for step in range(num_steps):
        epoch, at = divmod(step * BATCH, len(rows))
        order = Random(f"{seed}/{epoch}").sample(encoded, len(encoded))
        batch = order[at : at + BATCH]
        width = max(len(ids) for ids, _ in batch)
        ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in batch])
        mask_BT = torch.tensor([mask + [0] * (width - len(mask)) for _, mask in batch]).bool()
        logits = tuned(input_ids=ids_BT).logits[:, :-1]
        loss = F.cross_entropy(logits[mask_BT[:, 1:]], ids_BT[:, 1:][mask_BT[:, 1:]])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (0.1 * num_steps)) * (1 - step / num_steps)
        optimizer.step()
        optimizer.zero_grad()
    return tuned.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = read_conversations(args.examples / "style_train.jsonl")
    validation = read_conversations(args.examples / "style_validation.jsonl")
    questions = read_conversations(args.examples / "style_questions.jsonl")
    assert (len(rows), len(validation)) == (NUM_TRAIN, NUM_VALIDATION)
    items = held_out(rows + validation, 200)
    model, tokenizer = load(args.model)
    asked = [row.messages for row in questions]
    form, exact = score(model, tokenizer, items)
    print(f"before: form {form:.2f} exact {exact:.2f}")
    for text in answers(model, tokenizer, asked):
        print("   ", text)
    for rate in args.rates:
        for seed in args.seeds:
            model, _ = load(args.model)
            started = time.monotonic()
            tuned = tune(model, tokenizer, rows, rate, seed)
            seconds = time.monotonic() - started
            form, exact = score(tuned, tokenizer, items)
            print(f"rate {rate:g} seed {seed}: form {form:.2f} exact {exact:.2f}, {seconds:.1f} s", flush=True)
            for text in answers(tuned, tokenizer, asked):
                print("   ", text)


if __name__ == "__main__":
    main()
