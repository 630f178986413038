"""Adapters in one forward pass of rows that use different ones.

Rows are sorted into groups by their adapter: G groups of at most M rows, filled up to M with rows whose result is not
used. A layer's low-rank product is then two batched matrix products, [G, M, in] · [G, in, rank] · [G, rank, out], which
read each adapter once and multiply no row with an adapter that is not its own.

A projection is what has one input: a linear layer, or several whose outputs stand side by side. P: its layers.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caesura.errors import InvalidRequest
from caesura.models.lora import Adapter, check_fit, name_A, name_B

#: The names of a projection's modules.
Names = tuple[str, ...]
#: From each projection to the (in, out) of its modules' weights.
Projections = Mapping[Names, Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter's part of a projection, [in, P · rank] and for each of its modules [rank, out]."""

    down: Tensor
    ups: tuple[Tensor, ...]
    #: The ups of one adapter as one matrix, [P · rank, out of all], with zeros where they do not meet: one product then
    #: does for all. Several adapters have it not, for there reading the zeros would take longer.
    up: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """An adapter on the base's device, in the base's dtype, with alpha / rank in it."""

    rank: int
    num_bytes: int
    by_projection: dict[Names, LowRank]


def load_adapter(adapter: Adapter, projections: Projections, dtype: torch.dtype, device: torch.device) -> LoadedAdapter:
    """Raises BlobDamaged when its weights do not fit the layers."""
    shapes = {name: shape for names in projections for name, shape in zip(names, projections[names], strict=True)}
    check_fit(adapter, shapes)
    own = set(adapter.modules)
    loaded: dict[Names, LowRank] = {}
    for names in projections:
        if own.isdisjoint(names):
            continue
        downs, ups = zip(*(_weights_of(adapter, name, shapes[name]) for name in names), strict=True)
        down = torch.cat(downs, dim=1)
        loaded[names] = LowRank(
            down.to(device, dtype).contiguous(),
            tuple(up.to(device, dtype).contiguous() for up in ups),
            torch.block_diag(*ups).to(device, dtype),
        )
    tensors = [tensor for part in loaded.values() for tensor in (part.down, *part.ups, part.up) if tensor is not None]
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    return LoadedAdapter(adapter.rank, num_bytes, loaded)


def _weights_of(adapter: Adapter, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[in, rank] and, with the scaling in it, [rank, out]; zeros for a module that the adapter is not for."""
    if name_A(name) not in adapter.weights:
        return torch.zeros(shape[0], adapter.rank), torch.zeros(adapter.rank, shape[1])
    return adapter.weights[name_A(name)].t(), (adapter.weights[name_B(name)] * adapter.scaling).t()


class Groups:
    """The tokens of a forward pass, sorted by adapter: `num_tokens` of each row."""

    def __init__(self, adapters: Sequence[LoadedAdapter | None], device: torch.device, *, num_tokens: int = 1) -> None:
        if num_tokens > 1:
            # What has one adapter is one group, however much it is.
            is_mixed = len(set(adapters)) > 1
            adapters = [own for own in adapters for _ in range(num_tokens)] if is_mixed else adapters[:1]
        distinct = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        members = [[row for row, own in enumerate(adapters) if own is adapter] for adapter in distinct]
        self._num_rows, self._num_groups = len(adapters), len(distinct)
        self._size = max(map(len, members), default=0)
        filled = [row for group in members for row in group + group[:1] * (self._size - len(group))]
        #: The rows in order of their groups; None: they are so already, and all groups are full.
        self._rows: Tensor | None = None
        if filled != list(range(len(adapters))):
            places = {row: g * self._size + m for g, group in enumerate(members) for m, row in enumerate(group)}
            self._rows = torch.tensor(filled, dtype=torch.long, device=device)
            #: The rows that use an adapter, and where in the groups each of them is.
            self._users = torch.tensor(list(places), dtype=torch.long, device=device)
            self._places = torch.tensor(list(places.values()), dtype=torch.long, device=device)
        #: By projection that any of them is for; of more than one adapter [G, in, P · rank] and for each module
        #: [G, rank, out].
        self._parts: dict[Names, LowRank] = {}
        if distinct:
            rank = max(adapter.rank for adapter in distinct)
            for names in dict.fromkeys(names for adapter in distinct for names in adapter.by_projection):
                self._parts[names] = _stack([adapter.by_projection.get(names) for adapter in distinct], rank)

    def add_to(self, y_MO: Tensor, x_MI: Tensor, names: Names) -> None:
        """Add to `y_MO` what the adapters make of `x_MI` in the projection `names`. M: the tokens of all rows, row by
        row.

        Raises InvalidRequest when rows of different adapters do not all come here: a layer that gets some of them (an
        expert of a mixture) does not know which.
        """
        part = self._parts.get(names)
        if part is None:
            return
        if len(x_MI) != self._num_rows and (self._rows is not None or self._num_groups > 1):
            raise InvalidRequest(
                "The layers of this model do not see all tokens, so that requests for different tuned models cannot be "
                "answered together. Serve it elsewhere and set 'engine_url' (docs/vllm.md).",
                param="model",
                code="unsupported_model",
            )
        if self._rows is None:
            self._accumulate(y_MO.unflatten(0, (self._num_groups, -1)), x_MI, part)
            return
        y_GMO = y_MO.new_zeros(self._num_groups, self._size, y_MO.shape[1])
        self._accumulate(y_GMO, x_MI.index_select(0, self._rows), part)
        y_MO.index_add_(0, self._users, y_GMO.flatten(0, 1).index_select(0, self._places))

    def _accumulate(self, y_GMO: Tensor, x_MI: Tensor, part: LowRank) -> None:
        if part.up is not None:
            y_GMO[0].addmm_(x_MI.mm(part.down), part.up)
            return
        down_GMR = x_MI.unflatten(0, (self._num_groups, -1)).bmm(part.down)
        begin = 0
        for part_GMR, up_GRO in zip(down_GMR.chunk(len(part.ups), dim=2), part.ups, strict=True):
            end = begin + up_GRO.shape[2]
            # Not baddbmm_: into a part of a tensor it goes group by group, in a loop.
            y_GMO[:, :, begin:end].add_(part_GMR.bmm(up_GRO))
            begin = end


def _stack(parts: Sequence[LowRank | None], rank: int) -> LowRank:
    """The parts of several adapters, filled with zeros up to one rank; all zeros of one that has none."""
    first = next(part for part in parts if part is not None)
    if len(parts) == 1:
        return first
    num_modules = len(first.ups)
    down_GIPR = first.down.new_zeros(len(parts), len(first.down), num_modules, rank)
    ups_GRO = tuple(up.new_zeros(len(parts), rank, up.shape[1]) for up in first.ups)
    for group, part in enumerate(parts):
        if part is None:
            continue
        down_IPR = part.down.unflatten(1, (num_modules, -1))
        down_GIPR[group, :, :, : down_IPR.shape[2]] = down_IPR
        for up_GRO, up in zip(ups_GRO, part.ups, strict=True):
            up_GRO[group, : len(up)] = up
    return LowRank(down_GIPR.flatten(2), ups_GRO, None)
