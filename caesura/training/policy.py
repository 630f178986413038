"""The model as it answers: messages made of samples, in several turns where it may call tools."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

from caesura.data.order import derive_seed
from caesura.data.prompt_tokens import PromptTokens
from caesura.graders.grade import Grade, Score
from caesura.graders.tool_servers import EpisodeDropped, ToolServers
from caesura.inference.episode import continuation_ids, read_answer
from caesura.inference.grammar import build_constraint
from caesura.inference.sampler import Loaded, Parameters, Sample, Sampling
from caesura.inference.tools import ToolFormat
from caesura.models.loading import Base
from caesura.models.lora import Adapter
from caesura.training.grading import Grading
from caesura.training.rollouts import Rollout

#: How often one that waits for tools looks whether it shall go on.
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class HttpTools:
    """Tools that the model may call in the middle of an answer, in at most `max_steps` turns."""

    servers: ToolServers
    max_steps: int
    #: Where calls run.
    grading: Grading


@dataclass(slots=True)
class _Episode:
    """An answer in the making."""

    prompt: PromptTokens
    sample_index: int
    seed: int
    answer_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    is_own: list[int] = field(default_factory=list[int])
    output: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    num_reasoning_tokens: int = 0
    num_turns: int = 0
    has_ended: bool = False
    #: In the place of the grader's, where a tool failed.
    grade: Grade | None = None

    def budget(self, max_tokens: int) -> int:
        """Tokens that the model may still say: of `max_tokens` in all, and of the context."""
        return min(max_tokens - sum(self.is_own), self.prompt.room - len(self.answer_ids))

    def rollout(self) -> Rollout:
        return Rollout(
            line=self.prompt.line,
            sample_index=self.sample_index,
            prompt_ids=self.prompt.token_ids,
            answer_ids=self.answer_ids,
            logprobs=self.logprobs,
            is_own=self.is_own,
            finish_reason="stop" if self.has_ended else "length",
            output=self.output,
            num_reasoning_tokens=self.num_reasoning_tokens,
            grade=self.grade,
            is_dropped=self.grade is not None,
        )


class Policy(Generic[Loaded]):
    """`tool_format` says how the base calls tools, `max_tokens` bounds an answer."""

    def __init__(
        self,
        base: Base,
        sampling: Sampling[Loaded],
        tool_format: ToolFormat | None,
        max_tokens: int,
        http_tools: HttpTools | None = None,
    ) -> None:
        self._base = base
        self._sampling = sampling
        self._tool_format = tool_format
        self._max_tokens = max_tokens
        self._http_tools = http_tools

    def load(self, adapter: Adapter) -> Loaded:
        return self._sampling.load(adapter)

    def sample(
        self,
        adapter: Loaded,
        prompts: Sequence[PromptTokens],
        seeds: Sequence[Sequence[int]],
        watch: Callable[[], None],
        take: Callable[[Rollout], None],
    ) -> None:
        """An answer for each seed of each prompt, given to `take` as soon as it is whole. All are computed together.

        `watch` is called between tokens; what it raises leaves.
        """
        episodes = [
            [_Episode(prompt, index, seed) for index, seed in enumerate(its_seeds)]
            for prompt, its_seeds in zip(prompts, seeds, strict=True)
        ]
        going_on = self._turn(adapter, episodes, watch, take)
        while going_on:
            self._call_tools(going_on, watch)
            for episode in going_on:
                if not self._may_go_on(episode):
                    take(episode.rollout())
            going_on = [episode for episode in going_on if self._may_go_on(episode)]
            going_on = self._turn(adapter, [[episode] for episode in going_on], watch, take)

    def _turn(
        self,
        adapter: Loaded,
        groups: Sequence[Sequence[_Episode]],
        watch: Callable[[], None],
        take: Callable[[Rollout], None],
    ) -> list[_Episode]:
        """One message of the model for each; returns those that wait for their tools. A group has one prompt."""
        if not groups:
            return []
        going_on: list[_Episode] = []

        def end(group: int, place: int, sample: Sample) -> None:
            episode = groups[group][place]
            self._add_answer(episode, sample)
            if self._waits_for_tools(episode):
                going_on.append(episode)
            else:
                take(episode.rollout())

        self._sampling.sample(
            adapter,
            [[*group[0].prompt.token_ids, *group[0].answer_ids] for group in groups],
            [[_seed_of_turn(episode) for episode in group] for group in groups],
            [self._parameters(group[0]) for group in groups],
            watch,
            end,
        )
        return sorted(going_on, key=lambda episode: (episode.prompt.line, episode.sample_index))

    def _parameters(self, episode: _Episode) -> Parameters:
        schema = episode.prompt.row.json_schema
        return Parameters(
            max_tokens=episode.budget(self._max_tokens),
            eos_token_ids=self._base.eos_token_ids,
            make_mask=None if schema is None else partial(build_constraint, self._base, schema),
            json_schema=schema,
        )

    def _add_answer(self, episode: _Episode, sample: Sample) -> None:
        tools = episode.prompt.row.tools or []
        functions: list[dict[str, Any]] = [tool["function"] for tool in tools]
        read = read_answer(self._base, self._tool_format, functions, sample.token_ids, _seed_of_turn(episode))
        episode.answer_ids = [*episode.answer_ids, *sample.token_ids]
        episode.logprobs = [*episode.logprobs, *sample.logprobs]
        episode.is_own = [*episode.is_own, *[1] * len(sample.token_ids)]
        episode.output = [*episode.output, read.message]
        episode.num_reasoning_tokens += read.num_reasoning_tokens
        episode.num_turns += 1
        episode.has_ended = sample.has_ended

    def _waits_for_tools(self, episode: _Episode) -> bool:
        tools = self._http_tools
        has_calls = bool(episode.output[-1].get("tool_calls")) and episode.has_ended
        return tools is not None and has_calls and episode.num_turns < tools.max_steps

    def _may_go_on(self, episode: _Episode) -> bool:
        return episode.grade is None and episode.budget(self._max_tokens) > 0

    def _call_tools(self, episodes: Sequence[_Episode], watch: Callable[[], None]) -> None:
        """Have the tools that each last message calls answer, all at once."""
        tools = self._http_tools
        assert tools is not None
        futures = [
            [
                tools.grading.run(tools.servers.call(call, _trace_of(episode), episode.prompt.row.item))
                for call in episode.output[-1]["tool_calls"]
            ]
            for episode in episodes
        ]
        left = [future for of_one in futures for future in of_one]
        while any(not future.done() for future in left):
            watch()
            wait(left, timeout=LOOK_S)
        for episode, of_one in zip(episodes, futures, strict=True):
            self._hear_tools(episode, of_one)

    def _hear_tools(self, episode: _Episode, futures: Sequence[Future[str]]) -> None:
        calls = episode.output[-1]["tool_calls"]
        try:
            said = [
                {"role": "tool", "tool_call_id": call["id"], "content": future.result()}
                for call, future in zip(calls, futures, strict=True)
            ]
        except EpisodeDropped as dropped:
            episode.grade = Grade("", "tools", Score(0.0, {"other_error": str(dropped)}), 0.0)
            return
        token_ids = continuation_ids(
            self._base,
            [*episode.prompt.row.messages, *episode.output[:-1]],
            episode.output[-1],
            said,
            episode.prompt.row.tools,
            [*episode.prompt.token_ids, *episode.answer_ids],
            episode.prompt.options,
        )
        episode.answer_ids = [*episode.answer_ids, *token_ids]
        episode.logprobs = [*episode.logprobs, *[0.0] * len(token_ids)]
        episode.is_own = [*episode.is_own, *[0] * len(token_ids)]
        episode.output = [*episode.output, *said]
        episode.has_ended = False


def _seed_of_turn(episode: _Episode) -> int:
    return derive_seed(episode.seed, episode.num_turns) if episode.num_turns else episode.seed


def _trace_of(episode: _Episode) -> str:
    """The same for all calls of one answer, so that a server may keep what belongs to it."""
    return f"trace_{uuid.UUID(int=episode.seed % 2**64)}"
