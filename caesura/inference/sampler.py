"""Sampling as a library: prompts → tokens and their log-probabilities, exactly the same whenever it is asked again.

The samples of one call are a fixed group: they are computed together, and what shares a batch can change the last bits
of its arithmetic. A draw depends on its own sample's seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from caesura.inference.batch import MAX_ROWS, Batch
from caesura.inference.draw import Draw, Drawn, Mask
from caesura.inference.engine import Piece
from caesura.inference.prompt import Prompt
from caesura.models.decoding import Decoder
from caesura.models.decoding.adapters import LoadedAdapter
from caesura.models.lora import Adapter

#: An adapter as its sampling has it.
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation of a prompt; the end token is its last, if it came."""

    token_ids: list[int]
    #: log p(token) by the model, before temperature, top_p and penalties; as many as there are tokens.
    logprobs: list[float]
    #: It ended by itself; else it was cut off after `max_tokens`.
    has_ended: bool


#: Told of each sample as soon as it has ended: the index of its prompt, that of its seed, and the sample.
OnEnd = Callable[[int, int, Sample], None]


class Form(Mask, Protocol):
    """What one sample is held to: asked for its mask and told what was drawn, in turn. `grammar.Constraint` is one."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow but an end."""
        ...

    def accept(self, token_id: int) -> None:
        """The sample goes on with this token. Raises CaesuraError where it cannot."""
        ...


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
    #: Makes what a sample is held to, anew for each; one that is complete has ended, though no end token came.
    make_mask: Callable[[], Form] | None = None
    #: The same as a JSON schema, for who samples elsewhere.
    json_schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; a sample has at least one token")


class Sampling(Protocol[Loaded]):
    """Where samples come from: here (`LocalSampling`), or another server (`remote_sampling`)."""

    def load(self, adapter: Adapter) -> Loaded:
        """The adapter, ready to be sampled with."""
        ...

    def sample(
        self,
        adapter: Loaded,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        parameters: Sequence[Parameters],
        watch: Callable[[], None],
        on_end: OnEnd,
    ) -> None:
        """For each prompt a sample for each of its seeds, told to `on_end`. `watch` is called often.

        What `watch` or `on_end` raises ends the call. Raises CaesuraError where a sample cannot be had.
        """
        ...


class LocalSampling:
    """Samples from a decoder of this process, `max_rows` at a time."""

    def __init__(self, decoder: Decoder, max_rows: int) -> None:
        self._decoder = decoder
        self._sampler = Sampler(decoder, max_rows)

    def load(self, adapter: Adapter) -> LoadedAdapter:
        return self._decoder.load(adapter)

    def sample(
        self,
        adapter: LoadedAdapter,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        parameters: Sequence[Parameters],
        watch: Callable[[], None],
        on_end: OnEnd,
    ) -> None:
        asked = [Prompt([*token_ids], adapter) for token_ids in prompts]
        self._sampler.sample(asked, seeds, parameters, watch=watch, on_end=on_end)


class Sampler:
    """Samples from one decoder, `max_rows` samples at a time: that is part of what the result is a function of."""

    def __init__(self, decoder: Decoder, max_rows: int = MAX_ROWS) -> None:
        self._decoder = decoder
        self._max_rows = max_rows

    def sample(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        parameters: Parameters | Sequence[Parameters],
        *,
        watch: Callable[[], None] | None = None,
        on_end: OnEnd | None = None,
    ) -> list[list[Sample]]:
        """For each prompt a sample for each of its seeds, drawn by the prompt's own parameters or by those of all.

        Seeds are integers of 64 bits, signed. `watch` is called before each step; what it or `on_end` raises ends the
        call. Raises CaesuraError where a sample cannot be held to its form.
        """
        each = [parameters] * len(prompts) if isinstance(parameters, Parameters) else parameters
        growing = [
            [_Growing(prompt, (row, column), seed, own) for column, seed in enumerate(its_seeds)]
            for row, (prompt, its_seeds, own) in enumerate(zip(prompts, seeds, each, strict=True))
        ]
        self._grow([one for group in growing for one in group], watch, on_end)
        return [[one.sample() for one in group] for group in growing]

    def _grow(self, waiting: list[_Growing], watch: Callable[[], None] | None, on_end: OnEnd | None) -> None:
        # A new one: where keys and values lie in memory, which earlier calls have a part in, can change last bits too.
        batch: Batch[_Growing] = Batch(self._decoder, self._max_rows)
        while waiting or batch.members:
            if watch is not None:
                watch()
            joining = batch.choose(waiting)
            del waiting[: len(joining)]
            outcomes = batch.join(joining) if joining else batch.step()
            for one, outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
                if one.is_finished and on_end is not None:
                    on_end(*one.place, one.sample())
            waiting[:0] = batch.crowd_out()


class _Growing:
    """A sample in the making."""

    def __init__(self, prompt: Prompt, place: tuple[int, int], seed: int, parameters: Parameters) -> None:
        self.prompt = prompt
        self.place = place
        self.token_ids: list[int] = []
        self._form = None if parameters.make_mask is None else parameters.make_mask()
        self.draw = Draw(
            seed,
            temperature=parameters.temperature,
            top_p=parameters.top_p,
            frequency_penalty=parameters.frequency_penalty,
            presence_penalty=parameters.presence_penalty,
            logit_bias=parameters.logit_bias,
            top_logprobs=0,
            mask=self._form,
        )
        self._parameters = parameters
        self._logprobs: list[float] = []
        self._has_ended = False

    @property
    def is_finished(self) -> bool:
        return self._has_ended or len(self.token_ids) == self._parameters.max_tokens

    def add(self, drawn: Drawn) -> list[Piece]:
        assert drawn.logprob is not None
        if self.draw.fault is not None:
            raise self.draw.fault
        self.token_ids.append(drawn.token_id)
        self._logprobs.append(drawn.logprob)
        self._has_ended = drawn.token_id in self._parameters.eos_token_ids
        if self._form is not None:
            self._form.accept(drawn.token_id)
            self._has_ended = self._has_ended or self._form.is_complete
        return []

    def sample(self) -> Sample:
        return Sample(self.token_ids, self._logprobs, self._has_ended)
