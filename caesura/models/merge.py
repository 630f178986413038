"""A base with an adapter in its own weights, as a tar on standard output: `python -m caesura.models.merge`.

    W' = W + (alpha / rank) · B A      computed in fp32, kept in the dtype that W is stored in

One tensor is in memory at a time: the base's safetensors files are read where they lie, and what no adapter changes is
copied as it is. Not covered: weights that are stored quantized, and layers that the files call by other names than
`transformers` does.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from caesura.errors import CaesuraError, InvalidRequest
from caesura.jobs import Artifact
from caesura.models.loading import build_without_weights, find_folder
from caesura.models.lora import Adapter, check_fit, find_linears, from_files, in_out_features, name_A, name_B
from caesura.programs import read_request, take_output
from caesura.settings import BaseModelSettings
from caesura.storage import LocalStorage, get_files
from caesura.tars import Entry, of_bytes, tar_bytes, write_tar

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: What a model's folder holds beside weights and words about them.
COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
PIECE_BYTES = 2**20
#: By the names of the format.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its bytes lie from `start` to before `end`."""

    file: Path
    dtype: str
    shape: list[int]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Change:
    """The adapter's part for `layer` is added to the tensor, which is [in, out] if it is transposed."""

    layer: str
    is_transposed: bool


class Merged:
    """The folder of a base with its tensors by name, and an adapter with the tensors that it changes."""

    def __init__(
        self, folder: Path, tensors: Mapping[str, Stored], adapter: Adapter, changes: Mapping[str, Change]
    ) -> None:
        self._folder = folder
        #: In the order in which they are written: larger numbers first, so that each is aligned.
        self._tensors = dict(sorted(tensors.items(), key=lambda item: (-_item_bytes(item[1]), item[0])))
        self._adapter = adapter
        self._changes = changes

    def entries(self, card: str) -> list[Entry]:
        """The files of the merged model."""
        header = self._header()
        num_bytes = len(header) + sum(stored.num_bytes for stored in self._tensors.values())
        return [
            of_bytes("README.md", card.encode()),
            *_companions(self._folder),
            Entry(WEIGHTS, num_bytes, self._weights(header)),
        ]

    def _header(self) -> bytes:
        """Of a safetensors file: eight bytes with the length of the JSON behind them, which says where tensors lie."""
        told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        place = 0
        for name, stored in self._tensors.items():
            offsets = [place, place + stored.num_bytes]
            told[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
            place += stored.num_bytes
        text = json.dumps(told, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _weights(self, header: bytes) -> Iterator[bytes]:
        yield header
        for name, stored in self._tensors.items():
            with stored.file.open("rb") as file:
                file.seek(stored.start)
                if name in self._changes:
                    yield self._merge(file, stored, self._changes[name])
                else:
                    yield from _copy(file, stored.num_bytes)

    def _merge(self, file: BinaryIO, stored: Stored, change: Change) -> bytes:
        dtype = DTYPES[stored.dtype]
        weight = torch.frombuffer(bytearray(file.read(stored.num_bytes)), dtype=dtype).view(stored.shape)
        weights = self._adapter.weights
        delta = weights[name_B(change.layer)].float() @ weights[name_A(change.layer)].float()
        merged = torch.add(weight.float(), delta.t() if change.is_transposed else delta, alpha=self._adapter.scaling)
        return _to_bytes(merged.to(dtype))


def merge(folder: Path, adapter: Adapter, model: nn.Module) -> Merged:
    """`model`: the base's, on any device, for the names and shapes of its layers.

    Raises BlobDamaged when the adapter does not fit, InvalidRequest where the base's files cannot be merged with it.
    """
    linears = find_linears(model)
    check_fit(adapter, {name: in_out_features(linear) for name, linear in linears.items()})
    tensors = _find_tensors(folder)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    changes: dict[str, Change] = {}
    for layer in adapter.modules:
        names = (f"{layer}.weight", f"{layer.removeprefix(prefix)}.weight", f"{prefix}{layer}.weight")
        name = next((name for name in names if name in tensors), None)
        if name is None or tensors[name].dtype not in DTYPES:
            how = "under another name" if name is None else f"as {tensors[name].dtype}"
            raise InvalidRequest(
                f"The base's files hold the weights of its layer '{layer}' {how}, so that nothing can be merged into "
                "them. Export with format=peft, and merge by PEFT's merge_and_unload.",
                param="format",
                code="invalid_value",
            )
        changes[name] = Change(layer, isinstance(linears[layer], Conv1D))
    return Merged(folder, tensors, adapter, changes)


def _find_tensors(folder: Path) -> dict[str, Stored]:
    index = folder / INDEX
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS]
    return {name: stored for file in files for name, stored in _read_header(folder / file)}


def _read_header(path: Path) -> Iterator[tuple[str, Stored]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        told: dict[str, Any] = json.loads(file.read(length))
    for name, tensor in told.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            yield name, Stored(path, tensor["dtype"], tensor["shape"], start, end)


def _item_bytes(stored: Stored) -> int:
    num_items = 1
    for size in stored.shape:
        num_items *= size
    return stored.num_bytes // max(1, num_items)


def _copy(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes:
        piece = file.read(min(PIECE_BYTES, num_bytes))
        if not piece:
            raise EOFError("a file of the base is shorter than it says")
        num_bytes -= len(piece)
        yield piece


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _companions(folder: Path) -> list[Entry]:
    """Config, tokenizer and the like. A chat template that stands in the tokenizer's config gets a file of its own."""
    paths = {path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    files = {path.name: path.read_bytes() for path in sorted(paths) if path.name != INDEX}
    template = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    if isinstance(template, str):
        files.setdefault("chat_template.jinja", template.encode())
    return [of_bytes(name, data) for name, data in files.items()]


def main() -> None:
    request = read_request()
    output = take_output()
    settings = BaseModelSettings(path=request["path"])
    artifact = Artifact(request["adapter"]["prefix"], request["adapter"]["files"])
    try:
        adapter = from_files(get_files(LocalStorage(Path(request["blobs"])), artifact))
        model = build_without_weights(request["base"], settings)
        entries = merge(find_folder(request["base"], settings), adapter, model).entries(request["card"])
    except CaesuraError as error:
        told = {"status": error.status, "message": error.message, "param": error.param, "code": error.code}
        output.write(json.dumps(told).encode() + b"\n")
        output.flush()
        return
    folder, mtime = request["folder"], request["mtime"]
    output.write(json.dumps({"num_bytes": tar_bytes(folder, entries, mtime)}).encode() + b"\n")
    for piece in write_tar(folder, entries, mtime):
        output.write(piece)
    output.flush()


if __name__ == "__main__":
    main()
