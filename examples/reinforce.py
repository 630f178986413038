"""Reinforcement in two minutes: nobody shows the embedded base how to answer; graders only say what an answer is worth.

    make reinforce

Asked for a fact, the base answers in the bare words, in a sentence, or, one time in ten, with "Answer: " before it.
Here that last form is what is wanted, three times over: once a string check says so, once a Python function, once a
formula over two graders. Each job starts from the base; its model is then asked questions that no row of the training
file tells of, drawn at temperature 1 like the rewards of training. Everything that speaks to the server here is
OpenAI's own client.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MODEL, compare, console, create_job, model_of, serve, watch
from openai import OpenAI
from rich.table import Table

#: The example has succeeded when each job lifts the mean reward on unseen prompts by so much.
NEEDED_GAIN = 0.3

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "Answer: {{ item.answer }}",
    "operation": "eq",
}
#: Half for the right words, half for the form: the more answers differ in their reward, the faster is learned.
PYTHON = {
    "type": "python",
    "name": "in_python",
    "source": """
def grade(sample, item):
    text = sample["output_text"]
    is_right = text.lower().rstrip(".").endswith(item["answer"].lower())
    return (text.startswith("Answer: ") + is_right) / 2
""",
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {
        "right": {
            "type": "string_check",
            "name": "right",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.answer }}",
            "operation": "ilike",
        },
        "exact": EXACT,
    },
    "calculate_output": "0.3 * right + 0.7 * exact",
}
GRADERS: dict[str, dict[str, Any]] = {"a string check": EXACT, "Python": PYTHON, "a formula over two": MULTI}
#: 140 prompts in steps of 8, each answered 8 times.
HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 8, "max_completion_tokens": 32, "eval_interval": 18}


def reinforce(client: OpenAI, name: str, grader: dict[str, Any]) -> tuple[str, list[float]]:
    """Tune the base by the grader; returns the model and two mean rewards: of the base, whose answers are those of the
    first step, and of the model on the validation file."""
    console.print(f"\n[bold]Graded by {name}[/bold]")
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": HYPERPARAMETERS}}
    job = watch(client, create_job(client, "reinforcement", "labelled", method).id)
    model = model_of(job)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    steps = sorted((event.data for event in events if event.type == "metrics"), key=lambda data: data["step"])
    return model, [steps[0]["train_mean_reward"], steps[-1]["full_valid_mean_reward"]]


def show_rollouts(client: OpenAI, job_id: str) -> None:
    """Some answers of the first step, with what the grader said of them."""
    path = f"/fine_tuning/jobs/{job_id}/rollouts"
    page: Any = client.get(path, cast_to=object, options={"params": {"step": 1, "limit": 6}})
    table = Table("asked", "answered", "reward", "advantage", title="Six rollouts of the first step")
    for rollout in page["data"]:
        asked, answered = rollout["messages"][-1]["content"], rollout["output"][-1]["content"]
        table.add_row(asked, answered, f"{rollout['reward']:.2f}", f"{rollout['advantage']:+.2f}")
    console.print(table)


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as (client, _):
        table = Table("graded by", "the base's mean reward", "the tuned model's, on unseen prompts", "gain")
        gains: list[float] = []
        model = MODEL
        for name, grader in GRADERS.items():
            model, rewards = reinforce(client, name, grader)
            gains.append(rewards[-1] - rewards[0])
            table.add_row(name, f"{rewards[0]:.2f}", f"{rewards[-1]:.2f}", f"{gains[-1]:+.2f}")
        show_rollouts(client, client.fine_tuning.jobs.list(limit=1).data[0].id)
        compare(client, model)
        console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s in all.")
    return 0 if min(gains) >= NEEDED_GAIN else 1


if __name__ == "__main__":
    sys.exit(main())
