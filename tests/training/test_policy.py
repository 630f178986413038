"""Answers in several turns: the model calls a tool over HTTP, reads what it says, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest
import torch

from caesura.data.prompt_tokens import render_prompt
from caesura.data.prompts import PromptRow
from caesura.graders.calls import Retry, open_client
from caesura.graders.grade import Grader
from caesura.graders.tool_servers import ToolServers
from caesura.inference.sampler import OnEnd, Parameters, Sample
from caesura.inference.tools import find_format
from caesura.models.loading import Base, load_base, tool_template
from caesura.models.lora import Adapter
from caesura.schema.jobs import ToolServer
from caesura.settings import EMBEDDED_BASE_PATH, BaseModelSettings
from caesura.training.grading import Grading
from caesura.training.policy import HttpTools, Policy
from caesura.training.rollouts import Rollout
from tests.graders.judge_server import Answer, JudgeServer

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
END = "<|im_end|>"


@pytest.fixture(scope="module")
def base() -> Base:
    settings = BaseModelSettings(path=str(EMBEDDED_BASE_PATH))
    return load_base("caesura-tiny", settings, torch.float32, torch.device("cpu"))


class ScriptedSampler:
    """Draws what a test says, turn by turn; keeps the prompts that it was given."""

    def __init__(self, base: Base, *turns: str) -> None:
        self._base = base
        self._turns = list(turns)
        self.prompts: list[list[int]] = []
        self.max_tokens: list[int] = []

    def load(self, adapter: Adapter) -> None:
        raise AssertionError

    def sample(
        self,
        adapter: None,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        parameters: Sequence[Parameters],
        watch: Callable[[], None],
        on_end: OnEnd,
    ) -> None:
        tokenizer: Any = self._base.tokenizer
        text = self._turns.pop(0)
        for row, prompt in enumerate(prompts):
            self.prompts.append(list(prompt))
            self.max_tokens.append(parameters[row].max_tokens)
            token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            for column in range(len(seeds[row])):
                on_end(row, column, Sample(token_ids, [-0.5] * len(token_ids), text.endswith(END)))


@pytest.fixture
def grading() -> Iterator[Grading]:
    @asynccontextmanager
    async def open_grader() -> Any:
        yield cast(Grader, None)

    with Grading(open_grader, print) as running:
        yield running


Play = Callable[..., tuple[list[Rollout], ScriptedSampler]]


@pytest.fixture
def play(base: Base, grading: Grading) -> Iterator[Play]:
    clients: list[httpx.AsyncClient] = []

    def play(url: str, *turns: str, max_steps: int = 5, max_tokens: int = 100) -> tuple[list[Rollout], ScriptedSampler]:
        clients.append(open_client(max_idle_connections=0))
        servers = ToolServers(
            [ToolServer(name="add", server_url=url)],
            ["127.0.0.1"],
            clients[-1],
            Retry(max_tries=1, timeout_s=30, total_timeout_s=30),
        )
        sampler = ScriptedSampler(base, *turns)
        policy = Policy(
            base,
            sampler,
            find_format(tool_template(base.tokenizer)),
            max_tokens,
            HttpTools(servers, max_steps, grading),
        )
        row = PromptRow(7, [{"role": "user", "content": "1 + 1?"}], TOOLS, {"answer": "2"})
        prompt = render_prompt(row, base.tokenizer, 512)
        taken: list[Rollout] = []
        policy.sample(cast(Any, None), [prompt], [[11, 12]], lambda: None, taken.append)
        return taken, sampler

    yield play
    for client in clients:
        grading.run(client.aclose()).result()


def said(text: str) -> Answer:
    return Answer({"type": "function_call_output", "output": text})


def test_a_call_is_run_and_read_and_only_the_models_own_tokens_are_learned(base: Base, play: Play) -> None:
    with JudgeServer(said("two")) as server:
        rollouts, sampler = play(server.url, CALL + END, "It is two." + END)

    assert [rollout.sample_index for rollout in rollouts] == [0, 1]
    for rollout in rollouts:
        assert [message["role"] for message in rollout.output] == ["assistant", "tool", "assistant"]
        call, tool, answer = rollout.output
        assert call["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
        assert (tool["tool_call_id"], tool["content"]) == (call["tool_calls"][0]["id"], "two")
        assert answer["content"] == "It is two."
        assert rollout.finish_reason == "stop"
        own = [token for token, is_own in zip(rollout.answer_ids, rollout.is_own, strict=True) if is_own]
        assert base.tokenizer.decode(own, skip_special_tokens=False) == f"{CALL}{END}It is two.{END}"
        others = [token for token, is_own in zip(rollout.answer_ids, rollout.is_own, strict=True) if not is_own]
        between = base.tokenizer.decode(others, skip_special_tokens=False)
        assert "two" in between
        assert between.endswith("<|im_start|>assistant\n")
        assert {logprob for logprob, is_own in zip(rollout.logprobs, rollout.is_own, strict=True) if is_own} == {-0.5}
        assert not rollout.is_dropped
    # The second turn goes on from what was sampled in the first, and from what the tool said.
    first = rollouts[0]
    num_last = len(first.answer_ids) - 1 - first.is_own[::-1].index(0) + 1
    assert sampler.prompts[1] == first.prompt_ids + first.answer_ids[:num_last]
    assert sampler.max_tokens[1] == 100 - sum(first.is_own[:num_last])


def test_a_tool_gets_the_call_and_the_row_with_one_trace_for_an_answer(play: Play) -> None:
    with JudgeServer(said("2")) as server:
        play(server.url, CALL + END, CALL + END, "2" + END)
        requests = [request.body for request in server.requests]

    assert {request["name"] for request in requests} == {"add"}
    assert {request["arguments"] for request in requests} == {'{"a": 1}'}
    assert all(request["item"] == {"answer": "2"} for request in requests)
    assert len(requests) == 4
    assert len({request["trace_id"] for request in requests}) == 2


def test_a_tool_that_fails_drops_the_answer_with_a_flag(play: Play) -> None:
    with JudgeServer(Answer({}, status=500)) as server:
        rollouts, _ = play(server.url, CALL + END)

    for rollout in rollouts:
        assert rollout.is_dropped
        assert rollout.grade is not None
        assert rollout.reward == 0.0
        assert "The tool 'add' failed" in rollout.grade.score.faults["other_error"]


@pytest.mark.parametrize(
    ("turns", "values", "num_messages"),
    [
        ([CALL + END, CALL + END], {"max_steps": 2}, 3),
        ([CALL], {}, 1),
        (["Two." + END], {}, 1),
    ],
    ids=["the last turn", "a call that was cut off", "no call"],
)
def test_no_tool_is_called(play: Play, turns: list[str], values: dict[str, int], num_messages: int) -> None:
    with JudgeServer(said("2")) as server:
        rollouts, _ = play(server.url, *turns, **values)

    assert [len(rollout.output) for rollout in rollouts] == [num_messages] * 2


def test_where_the_budget_is_spent_no_more_is_said(play: Play) -> None:
    with JudgeServer(said("2")) as server:
        rollouts, sampler = play(server.url, CALL + END, max_tokens=5)

    assert len(sampler.prompts) == 1
    for rollout in rollouts:
        assert rollout.output[-1]["role"] == "tool"
        assert rollout.finish_reason == "length"
