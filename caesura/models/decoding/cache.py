"""Keys and values of rows that grow together.

All rows end at the same column, the head; a row of n tokens takes the n columns before it:

    row 0   . . . a b c d │
    row 1   . x y z w v u │        starts = [3, 1], head = 7
    row 2   . . . . . p q │

So a step writes one column for all rows and reads one block, without gathering anything. B: rows, H: heads of keys and
values, D: their size, W: columns. What a row does not use holds numbers all the same: it is masked, and finite.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Room is made for at least so many more columns than are needed now; for as many again, if that is more.
MIN_SPARE_COLUMNS = 128


@dataclass(frozen=True, slots=True)
class CacheShape:
    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_heads * self.head_dim * self.dtype.itemsize


class KeyValueCache:
    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._starts: list[int] = []
        self._head = 0
        self._max_rows = 0
        self._max_columns = 0
        #: By layer, [rows there is room for, H, columns there is room for, D].
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        #: Which columns are before a row's first; of all columns there is room for. None: to be made anew.
        self._padding: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return len(self._starts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self._head - start for start in self._starts]

    def append(self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Append rows, given by layer, right-aligned in [rows, H, W, D]; the columns before a row's first are taken
        along, so they must be finite."""
        width = keys[0].shape[2]
        self._make_room(len(lengths), width, 0)
        rows = slice(self.num_rows, self.num_rows + len(lengths))
        columns = slice(self._head - width, self._head)
        for layer in range(self._shape.num_layers):
            self._keys[layer][rows, :, columns] = keys[layer]
            self._values[layer][rows, :, columns] = values[layer]
        self._starts += [self._head - length for length in lengths]
        self._padding = None

    def copy(self, row: int, num_copies: int) -> None:
        """Append copies of the row."""
        self._make_room(num_copies, 0, 0)
        for _ in range(num_copies):
            self._move(row, self.num_rows)
            self._starts.append(self._starts[row])
        self._padding = None

    def remove(self, row: int) -> None:
        """The last row takes the place of `row`."""
        last = self.num_rows - 1
        if row != last:
            self._move(last, row)
            self._starts[row] = self._starts[last]
        # Numbers that are not finite would spread to the next row that is put here: a weight of 0 does not undo them.
        for tensor in (*self._keys, *self._values):
            tensor[last].zero_()
        self._starts.pop()
        self._padding = None

    def advance(self) -> None:
        """Give each row one more token, which `write` then fills in, layer by layer."""
        self._make_room(0, 0, 1)
        self._head += 1

    def write(self, layer: int, keys_BHD: Tensor, values_BHD: Tensor) -> tuple[Tensor, Tensor]:
        """Fill in the last column; returns the layer's keys and values of all rows, [B · H, W, D]."""
        num_rows, first, head = self.num_rows, self._first, self._head
        keys, values = self._keys[layer][:num_rows], self._values[layer][:num_rows]
        keys.select(2, head - 1).copy_(keys_BHD)
        values.select(2, head - 1).copy_(values_BHD)
        return keys[:, :, first:head].flatten(0, 1), values[:, :, first:head].flatten(0, 1)

    def mask(self, window: int | None) -> Tensor | None:
        """Where a row's last token may not look, [B, W]; None: it sees all. `window`: it sees so many last tokens."""
        first, head = self._first, self._head
        is_narrow = window is not None and window < head - first
        if not is_narrow and all(start == first for start in self._starts):
            return None
        device = self._shape.device
        if self._padding is None:
            starts_B1 = torch.tensor(self._starts, device=device).unsqueeze(1)
            self._padding = torch.arange(self._max_columns, device=device) < starts_B1
        mask_BW = self._padding[:, first:head]
        if window is not None and is_narrow:
            return mask_BW | (torch.arange(first, head, device=device) < head - window)
        return mask_BW

    @property
    def _first(self) -> int:
        """The first column that any row uses."""
        return min(self._starts, default=self._head)

    def _move(self, source: int, target: int) -> None:
        # The columns before its first token too: what is there of the row before may not be finite.
        for tensor in (*self._keys, *self._values):
            tensor[target, :, : self._head] = tensor[source, :, : self._head]

    def _shift(self, head: int) -> None:
        """Bring the head back to this column: what moves there does not reach what is moved."""
        first, used = self._first, self._head - self._first
        for tensor in (*self._keys, *self._values):
            tensor[: self.num_rows, :, head - used : head] = tensor[: self.num_rows, :, first : self._head]
        self._starts = [start - first + head - used for start in self._starts]
        self._head, self._padding = head, None

    def _make_room(self, num_rows: int, width: int, num_columns: int) -> None:
        """Room for so many more rows, for `width` columns before the head and `num_columns` behind it."""
        if not self._starts and num_rows <= self._max_rows and width + num_columns <= self._max_columns:
            self._head = width  # nothing is there that would have to move
            return
        num_rows += self.num_rows
        if num_rows <= self._max_rows and width <= self._head and self._head + num_columns <= self._max_columns:
            return
        first, used = self._first, self._head - self._first
        head = max(used, width)
        if num_rows <= self._max_rows and head + num_columns <= self._max_columns // 2 and head <= first:
            self._shift(head)
            return
        shape = self._shape
        max_rows = self._max_rows if num_rows <= self._max_rows else num_rows + num_rows // 2
        max_columns = head + num_columns + max(MIN_SPARE_COLUMNS, head)
        size = (max_rows, shape.num_heads, max_columns, shape.head_dim)

        def moved(tensors: list[Tensor]) -> list[Tensor]:
            larger = [torch.zeros(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.num_layers)]
            for new, old in zip(larger, tensors, strict=False):
                new[: self.num_rows, :, head - used : head] = old[: self.num_rows, :, first : self._head]
            return larger

        self._keys, self._values = moved(self._keys), moved(self._values)
        self._starts = [start - first + head - used for start in self._starts]
        self._head, self._max_rows, self._max_columns = head, max_rows, max_columns
        self._padding = None
