"""Sampling by another server, vLLM in particular: prompts go there as tokens, and tokens come back with their
log-probabilities. Each new adapter is written where it reads them, and loaded there under a name of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import httpx
from pydantic import BaseModel, Field

from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest
from caesura.inference.engine import CompletionRequest
from caesura.inference.remote_adapters import Adapters, post, read_refusal
from caesura.inference.remote_errors import nonsense_is_unavailable, to_error, transport_is_unavailable
from caesura.inference.remote_wire import schema_format
from caesura.inference.sampler import OnEnd, Parameters, Sample
from caesura.jobs import Artifact
from caesura.models.lora import Adapter, to_files
from caesura.storage import Storage, put_files

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_CONCURRENT = 256
#: How often one that waits for samples looks whether it shall go on.
LOOK_S = 0.05
#: Between two tries to reach the server, seconds; doubled up to the second number.
RETRY_S = (1.0, 30.0)
WITHDRAW_TIMEOUT_S = 10.0


class Run(Protocol):
    """Runs a coroutine in an event loop of another thread."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> Future[T]: ...


@dataclass(slots=True, eq=False)
class Published:
    """An adapter, and where the server reads it."""

    adapter: Adapter
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class _Asked:
    """One sample that is wanted."""

    published: Published
    prompt: Sequence[int]
    seed: int
    parameters: Parameters


@dataclass(slots=True)
class RemoteSampling:
    """A `Sampling`. `base` is the base's name there.

    `on_waiting` is called when the server cannot be reached: once until it can.
    """

    client: httpx.AsyncClient
    adapters: Adapters
    storage: Storage
    base: str
    run: Run
    on_waiting: Callable[[str], None]
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT))
    _is_waiting: bool = False
    _last: Published | None = None

    def load(self, adapter: Adapter) -> Published:
        """Write it where the server reads it; what was there before is not needed any more."""
        published = Published(adapter, put_files(self.storage, "adapters", to_files(adapter, self.base)))
        if self._last is not None:
            self.run(self._withdraw(self._last.artifact))
        self._last = published
        return published

    def sample(
        self,
        adapter: Published,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        parameters: Sequence[Parameters],
        watch: Callable[[], None],
        on_end: OnEnd,
    ) -> None:
        places: dict[Future[Sample], tuple[int, int]] = {}
        for row, (prompt, its_seeds, own) in enumerate(zip(prompts, seeds, parameters, strict=True)):
            for column, seed in enumerate(its_seeds):
                places[self.run(self._sample(_Asked(adapter, prompt, seed, own)))] = row, column
        try:
            while places:
                watch()
                done, _ = wait(places, timeout=LOOK_S, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: places[future]):
                    on_end(*places.pop(future), future.result())
        finally:
            for future in places:
                future.cancel()

    async def close(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            await self._withdraw(last.artifact)
        self.adapters.close()
        await self.client.aclose()

    async def _sample(self, asked: _Asked) -> Sample:
        """Waits as long as the server cannot be reached. Raises InvalidRequest where it refuses."""
        async with self._turns:
            pause_s, longest_s = RETRY_S
            while True:
                try:
                    sample = await self._ask(asked)
                except EngineUnavailable as error:
                    self._tell_waiting(error.message)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
                except InvalidRequest as error:
                    raise InvalidRequest(f"No answer can be sampled. {error.message}", code=error.code) from error
                else:
                    self._is_waiting = False
                    return sample

    async def _ask(self, asked: _Asked) -> Sample:
        request = CompletionRequest(self.base, asked.published.artifact, list(asked.prompt))
        with transport_is_unavailable():
            name = await self._load(asked.published, request)
            response = await post(self.client, "/completions", _to_body(asked, name))
            try:
                if response.status_code == 200:
                    return self._read(await response.aread(), asked)
                refusal = await read_refusal(response)
            finally:
                await response.aclose()
        if response.status_code == 404 and name in refusal.message:
            # It has started anew, or dropped the adapter: the next try has it loaded again.
            self.adapters.forget(asked.published.artifact)
            raise EngineUnavailable("The server at 'engine_url' has dropped the adapter; it is loaded again.")
        raise to_error(refusal, request)

    async def _load(self, published: Published, request: CompletionRequest) -> str:
        """The adapter's name there. What has been swept here since it was written is written again."""
        artifact = published.artifact
        try:
            return await self.adapters.load(artifact, self.base, request)
        except BlobDamaged:
            if published.artifact is artifact:  # nobody else has written it meanwhile
                files = to_files(published.adapter, self.base)
                published.artifact = await asyncio.to_thread(put_files, self.storage, "adapters", files)
            return await self.adapters.load(published.artifact, self.base, request)

    async def _withdraw(self, artifact: Artifact) -> None:
        """Nothing is lost where it fails: the server drops what is not used, and the sweep takes the files."""
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
                await self.adapters.unload(artifact)
        except (httpx.TransportError, TimeoutError) as error:
            logger.info("an adapter could not be unloaded: %s", type(error).__name__)
        for key in artifact.blobs():
            await asyncio.to_thread(self.storage.delete, key)

    def _tell_waiting(self, words: str) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            self.on_waiting(words)

    def _read(self, reply: bytes, asked: _Asked) -> Sample:
        with nonsense_is_unavailable():
            (choice,) = _Reply.model_validate_json(reply).choices
            if choice.token_ids is None:
                raise InvalidRequest(
                    "The server at 'engine_url' does not tell the tokens of its answers ('return_token_ids'): vLLM "
                    "0.10.2 or later does (docs/vllm.md).",
                    code="unsupported_model",
                )
            token_ids, logprobs = choice.token_ids, choice.logprobs.token_logprobs
            if len(token_ids) != len(logprobs) or not 0 < len(token_ids) <= asked.parameters.max_tokens:
                raise ValueError(f"{len(token_ids)} tokens have {len(logprobs)} log-probabilities")
        return Sample(token_ids, logprobs, choice.finish_reason == "stop")


class _Logprobs(BaseModel):
    token_logprobs: list[float]


class _Choice(BaseModel):
    token_ids: list[int] | None = Field(default=None)
    logprobs: _Logprobs
    finish_reason: Literal["stop", "length"]


class _Reply(BaseModel):
    choices: list[_Choice]


def _to_body(asked: _Asked, model: str) -> dict[str, Any]:
    parameters = asked.parameters
    schema = parameters.json_schema
    return {
        "model": model,
        "prompt": list(asked.prompt),
        "max_tokens": parameters.max_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "seed": asked.seed,
        # Of the sampled token alone.
        "logprobs": 0,
        "return_token_ids": True,
        "stop_token_ids": sorted(parameters.eos_token_ids),
        **({} if schema is None else {"response_format": schema_format(schema)}),
    }
