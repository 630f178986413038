"""Sampling as a library: prompts → tokens and their log-probabilities, exactly the same whenever it is asked again.

The samples of one call are a fixed group: they are computed together, and what shares a batch can change the last bits
of its arithmetic. A draw depends on its own sample's seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from caesura.inference.batch import MAX_ROWS, Batch
from caesura.inference.draw import Draw, Drawn
from caesura.inference.engine import Piece
from caesura.inference.prompt import Prompt
from caesura.models.decoding import Decoder


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation of a prompt; the end token is its last, if it came."""

    token_ids: list[int]
    #: log p(token) by the model, before temperature, top_p and penalties; as many as there are tokens.
    logprobs: list[float]
    #: It ended by itself; else it was cut off after `max_tokens`.
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Parameters:
    """How samples are drawn; the values are those of OpenAI's API. Raises ValueError where no token may be drawn."""

    #: At least 1.
    max_tokens: int
    eos_token_ids: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict[int, float])

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; a sample has at least one token")


class Sampler:
    """Samples from one decoder, `max_rows` samples at a time: that is part of what the result is a function of."""

    def __init__(self, decoder: Decoder, max_rows: int = MAX_ROWS) -> None:
        self._decoder = decoder
        self._max_rows = max_rows
        #: Between two calls it is empty, and keeps its memory.
        self._batch: Batch[_Growing] = Batch(decoder, max_rows)

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], parameters: Parameters
    ) -> list[list[Sample]]:
        """For each prompt a sample for each of its seeds. Seeds are integers of 64 bits, signed."""
        growing = [
            [_Growing(prompt, seed, parameters) for seed in its_seeds]
            for prompt, its_seeds in zip(prompts, seeds, strict=True)
        ]
        try:
            self._grow([one for group in growing for one in group])
        except BaseException:
            self._batch = Batch(self._decoder, self._max_rows)
            raise
        return [[one.sample() for one in group] for group in growing]

    def _grow(self, waiting: list[_Growing]) -> None:
        batch = self._batch
        while waiting or batch.members:
            joining = batch.choose(waiting)
            del waiting[: len(joining)]
            outcomes = batch.join(joining) if joining else batch.step()
            for _, outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
            waiting[:0] = batch.crowd_out()


class _Growing:
    """A sample in the making."""

    def __init__(self, prompt: Prompt, seed: int, parameters: Parameters) -> None:
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.draw = Draw(
            seed,
            temperature=parameters.temperature,
            top_p=parameters.top_p,
            frequency_penalty=parameters.frequency_penalty,
            presence_penalty=parameters.presence_penalty,
            logit_bias=parameters.logit_bias,
            top_logprobs=0,
        )
        self._parameters = parameters
        self._logprobs: list[float] = []
        self._has_ended = False

    @property
    def is_finished(self) -> bool:
        return self._has_ended or len(self.token_ids) == self._parameters.max_tokens

    def add(self, drawn: Drawn) -> list[Piece]:
        assert drawn.logprob is not None
        self.token_ids.append(drawn.token_id)
        self._logprobs.append(drawn.logprob)
        self._has_ended = drawn.token_id in self._parameters.eos_token_ids
        return []

    def sample(self) -> Sample:
        return Sample(self.token_ids, self._logprobs, self._has_ended)
