"""What is made of one base model together: each step draws one token for every member."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from caesura.errors import CaesuraError
from caesura.inference.draw import Draw, Drawn, draw
from caesura.inference.engine import Piece
from caesura.inference.prompt import Prompt
from caesura.models.decoding import Decoder

#: Members of a batch.
MAX_ROWS = 32
#: Of the keys and values of a batch of more than one.
MAX_CACHE_BYTES = 2 * 2**30
#: Prompt tokens of those that join before one step, if they are more than one: the others wait meanwhile.
MAX_JOINING_TOKENS = 4096
#: Who joins must leave room for so many more tokens of each member.
SPARE_TOKENS = 64


class Member(Protocol):
    """What grows by a token a step, until it says that it is finished."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def token_ids(self) -> Sequence[int]:
        """What was drawn so far."""
        ...

    @property
    def draw(self) -> Draw: ...

    @property
    def is_finished(self) -> bool: ...

    def add(self, drawn: Drawn) -> list[Piece]:
        """Take the token; returns what can be told. Raises CaesuraError when it cannot go on."""
        ...


M = TypeVar("M", bound=Member)
#: What can be told of a member after a step, or why it cannot go on.
Outcome = list[Piece] | CaesuraError


class Batch(Generic[M]):
    """A member that is finished, or that cannot go on, leaves by itself."""

    def __init__(self, decoder: Decoder, max_rows: int = MAX_ROWS, max_cache_bytes: int = MAX_CACHE_BYTES) -> None:
        self._decoder = decoder
        self._max_rows = max_rows
        self._max_tokens = max_cache_bytes // decoder.bytes_per_token
        self._rows = decoder.new_rows()
        self._members: list[M] = []

    @property
    def members(self) -> Sequence[M]:
        return self._members

    def choose(self, waiting: Iterable[M]) -> list[M]:
        """As many of them, from the first on, as may join before the next step."""
        chosen: list[M] = []
        num_rows, longest = len(self._members), self._longest()
        num_joining_tokens, last_prompt = 0, None
        for member in waiting:
            num_rows += 1
            longest = max(longest, _num_tokens(member))
            if member.prompt is not last_prompt:
                num_joining_tokens += _num_tokens(member)
            last_prompt = member.prompt
            if num_rows > self._max_rows or (num_rows > 1 and num_rows * (longest + SPARE_TOKENS) > self._max_tokens):
                break
            if chosen and num_joining_tokens > MAX_JOINING_TOKENS:
                break
            chosen.append(member)
        return chosen

    def join(self, members: Sequence[M]) -> list[tuple[M, Outcome]]:
        """Take these in: their next tokens. A prompt that several of them begin with is computed once."""
        if not members:
            return []
        # By adapter, so that those with the same one are mostly neighbours, and need not be gathered at every step.
        members = sorted(members, key=lambda member: id(member.prompt.adapter))
        families = [list(family) for _, family in groupby(members, key=_family)]
        before = self._rows.num_rows
        logits_BV = self._rows.prefill(
            [[*family[0].prompt.token_ids, *family[0].token_ids] for family in families],
            [family[0].prompt.adapter for family in families],
        )
        ordered = [family[0] for family in families]
        rows = list(range(len(families)))
        for row, (_, *siblings) in enumerate(families):
            if siblings:
                self._rows.copy(before + row, len(siblings))
                ordered += siblings
                rows += [row] * len(siblings)
        self._members += ordered
        return self._draw(logits_BV[rows], ordered)

    def step(self) -> list[tuple[M, Outcome]]:
        """The next tokens of all members."""
        logits_BV = self._rows.step([member.token_ids[-1] for member in self._members])
        return self._draw(logits_BV, list(self._members))

    def crowd_out(self) -> list[M]:
        """Have those leave, the last first, for whom the next step has no room. They may join again later, and then go
        on where they are."""
        leaving: list[M] = []
        while len(self._members) > 1 and len(self._members) * (self._longest() + 1) > self._max_tokens:
            leaving.insert(0, self._members[-1])
            self.leave(self._members[-1])
        return leaving

    def leave(self, member: M) -> None:
        """Take the member out, if it is in."""
        if member in self._members:
            row = self._members.index(member)
            self._rows.remove(row)
            self._members[row] = self._members[-1]
            self._members.pop()

    def _draw(self, logits_BV: Tensor, members: list[M]) -> list[tuple[M, Outcome]]:
        drawn = draw(logits_BV, [member.draw for member in members])
        outcomes = [(member, _add(member, one)) for member, one in zip(members, drawn, strict=True)]
        for member, outcome in reversed(outcomes):  # where all leave, none has to take another's place
            if member.is_finished or isinstance(outcome, CaesuraError):
                self.leave(member)
        return outcomes

    def _longest(self) -> int:
        return max(map(_num_tokens, self._members), default=0)


def _add(member: Member, drawn: Drawn) -> Outcome:
    try:
        return member.add(drawn)
    except CaesuraError as fault:  # this member's own
        return fault


def _num_tokens(member: Member) -> int:
    return len(member.prompt.token_ids) + len(member.token_ids)


def _family(member: Member) -> object:
    """What is equal for members that go on from the same tokens."""
    return id(member.prompt) if not member.token_ids else id(member)
