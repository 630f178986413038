"""How many answers may be in the making or waiting at once, over all requests: beyond it, requests are answered 429."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from caesura.errors import InvalidRequest, RateLimited


class Admission:
    """The places for answers. One an application, used from its event loop."""

    def __init__(self, max_answers: int) -> None:
        self.max_answers = max_answers
        self.num_taken = 0


class Places:
    """What one request holds of them; `headers`, those of its answer, tell what is left."""

    def __init__(self, admission: Admission, headers: dict[str, str]) -> None:
        self._admission = admission
        self._headers = headers
        self._num_held = 0
        self._tell()

    def take(self, num_answers: int = 1, *, param: str = "n") -> None:
        """Take a place for each of the answers, until the request's own answer is over, however it ends.

        Raises RateLimited where there are too few now, and InvalidRequest naming `param` where there never are enough.
        """
        limit, taken = self._admission.max_answers, self._admission.num_taken
        if num_answers > limit:
            raise InvalidRequest(
                f"Invalid '{param}': this server makes at most {limit} answers at once, and this request alone asks "
                f"for {num_answers}. Ask for fewer, or raise the setting max_answers.",
                param=param,
                code="invalid_value",
            )
        if num_answers > limit - taken:
            raise RateLimited(
                f"This server makes at most {limit} answers at once, and {taken} are in the making or waiting; this "
                f"request asks for {num_answers} more. Please try again in a second, or raise the setting max_answers."
            )
        self._num_held += num_answers
        self._admission.num_taken += num_answers
        self._tell()

    def give_back(self) -> None:
        self._admission.num_taken -= self._num_held
        self._num_held = 0

    def _tell(self) -> None:
        limit = self._admission.max_answers
        self._headers["x-ratelimit-limit-requests"] = str(limit)
        self._headers["x-ratelimit-remaining-requests"] = str(limit - self._admission.num_taken)
        # Nobody knows when an answer will be over: it is when to look again.
        self._headers["x-ratelimit-reset-requests"] = f"{RateLimited.retry_after_s}s"


async def _places(request: Request) -> AsyncGenerator[Places, None]:
    """The framework goes on here when the answer has been sent, or will not be."""
    places = Places(cast(Admission, request.app.state.admission), request.state.headers)
    try:
        yield places
    finally:
        places.give_back()


PlacesDependency = Annotated[Places, Depends(_places)]
