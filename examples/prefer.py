"""Preferences in a minute: teach the embedded base which of two right answers is the better one, and measure it.

    make prefer

In every pair both answers are right, and a whole sentence is preferred to the bare words; the base gives either, as a
coin falls. Both models are measured on pairs that no row of the training file tells of: how likely is each answer
(`/v1/completions` says it, with `echo`), and what do they answer? Everything that speaks to the server here is OpenAI's
own client.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import MODEL, compare, console, create_job, model_of, read_rows, serve, watch
from openai import OpenAI
from rich.table import Table

#: The example has succeeded when the base was as good as undecided, and the tuned model is not.
UNDECIDED = (0.35, 0.65)
NEEDED_SHARE = 0.85


@dataclass(frozen=True)
class Pair:
    prompt: str
    preferred: str
    other: str


def read_pairs(name: str) -> list[Pair]:
    """The pairs of a file, each question in the chat format of the embedded base: completions take a text as it is."""
    return [
        Pair(
            f"<|im_start|>user\n{row['input']['messages'][0]['content']}<|im_end|>\n<|im_start|>assistant\n",
            row["preferred_output"][0]["content"],
            row["non_preferred_output"][0]["content"],
        )
        for row in read_rows(name)
    ]


def logprobs(client: OpenAI, model: str, prompts: list[str], answers: list[str]) -> list[float]:
    """How likely the model finds each answer to its prompt: the sum over the tokens of the answer and its end."""
    texts = [f"{prompt}{answer}<|im_end|>" for prompt, answer in zip(prompts, answers, strict=True)]
    told = client.completions.create(model=model, prompt=texts, max_tokens=0, echo=True, logprobs=0).choices
    sums = []
    for prompt, choice in zip(prompts, told, strict=True):
        tokens = zip(choice.logprobs.token_logprobs, choice.logprobs.text_offset, strict=True)
        sums.append(sum(logprob for logprob, offset in tokens if offset >= len(prompt)))
    return sums


def share_likelier(client: OpenAI, model: str, pairs: list[Pair]) -> float:
    """The share of the pairs whose preferred answer is the likelier one."""
    prompts = [pair.prompt for pair in pairs]
    preferred = logprobs(client, model, prompts, [pair.preferred for pair in pairs])
    other = logprobs(client, model, prompts, [pair.other for pair in pairs])
    return sum(a > b for a, b in zip(preferred, other, strict=True)) / len(pairs)


def share_answered(client: OpenAI, model: str, pairs: list[Pair]) -> float:
    """The share of the pairs whose preferred answer, word for word, is what the model answers."""
    prompts = [pair.prompt for pair in pairs]
    answers = client.completions.create(model=model, prompt=prompts, max_tokens=60, temperature=0).choices
    return sum(answer.text == pair.preferred for answer, pair in zip(answers, pairs, strict=True)) / len(pairs)


def reward_accuracy(client: OpenAI, job_id: str) -> float:
    """What the job itself measured last on its validation file: how often the preferred answer gained on the other."""
    events = client.fine_tuning.jobs.list_events(job_id)
    return next(event.data["full_valid_reward_accuracy"] for event in events if event.type == "metrics")


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as (client, _):
        method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}}}
        job = watch(client, create_job(client, "preference", "sentences", method).id)
        models = (MODEL, model_of(job))
        compare(client, models[1])
        pairs = read_pairs("preference_validation.jsonl")
        likelier = [share_likelier(client, model, pairs) for model in models]
        answered = [share_answered(client, model, pairs) for model in models]
        table = Table(f"{len(pairs)} unseen pairs", "the base", "the tuned model")
        table.add_row("the preferred answer is the likelier one", *(f"{share:.1%}" for share in likelier))
        table.add_row("the preferred answer is given, word for word", *(f"{share:.1%}" for share in answered))
        table.add_row("full_valid_reward_accuracy, as the job told it", "", f"{reward_accuracy(client, job.id):.1%}")
        console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s in all.")
    base, tuned = likelier
    return 0 if UNDECIDED[0] <= base <= UNDECIDED[1] and tuned > NEEDED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
