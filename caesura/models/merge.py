"""A base with an adapter in its own weights, or with others in their place, as a tar on standard output: `python -m
caesura.models.merge`.

    W' = W + (alpha / rank) · B A      computed in fp32, kept in the dtype that W is stored in

Of the base one tensor is in memory at a time: its safetensors files are read where they lie, and what is not changed is
copied as it is. Not covered: weights that are stored quantized, and layers that the files call by other names than
`transformers` does.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from caesura.errors import CaesuraError, InvalidRequest
from caesura.jobs import Artifact
from caesura.models.full import FullWeights, check_names_and_shapes
from caesura.models.loading import build_without_weights, find_folder
from caesura.models.lora import Adapter, add_low_rank, check_fit, find_linears, in_out_features
from caesura.models.tuned import from_files
from caesura.models.weight_files import make_header
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


#: From a tensor of the base to the one in its place, in fp32.
Change = Callable[[Tensor], Tensor]


class Merged:
    """The folder of a base with its tensors by name, and what is changed of them."""

    def __init__(self, folder: Path, tensors: Mapping[str, Stored], changes: Mapping[str, Change]) -> None:
        self._folder = folder
        #: In the order in which they are written: larger numbers first, so that each is aligned.
        self._tensors = dict(sorted(tensors.items(), key=lambda item: (-_item_bytes(item[1]), item[0])))
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
        described = ((name, stored.dtype, stored.shape, stored.num_bytes) for name, stored in self._tensors.items())
        return make_header(described, {"format": "pt"})

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
        return _to_bytes(change(weight).to(dtype))


def merge(folder: Path, adapter: Adapter, model: nn.Module) -> Merged:
    """`model`: the base's, on any device, for the names and shapes of its layers.

    Raises BlobDamaged when the adapter does not fit, InvalidRequest where the base's files cannot be merged with it.
    """
    linears = find_linears(model)
    check_fit(adapter, {name: in_out_features(linear) for name, linear in linears.items()})
    tensors = _find_tensors(folder)
    changes: dict[str, Change] = {}
    for layer in adapter.modules:
        name = _find_name(f"{layer}.weight", model, tensors)
        how = _why_not(name, tensors)
        if name is None or how:
            raise InvalidRequest(
                f"The base's files hold the weights of its layer '{layer}' {how}, so that nothing can be merged into "
                "them. Export with format=peft, and merge by PEFT's merge_and_unload.",
                param="format",
                code="invalid_value",
            )
        changes[name] = partial(add_low_rank, adapter=adapter, layer=layer, linear=linears[layer])
    return Merged(folder, tensors, changes)


def replace_weights(folder: Path, full: FullWeights, model: nn.Module) -> Merged:
    """The base with the weights of a tuned model in the place of its own, wherever its files have one: one that several
    parts of the model share may stand there under more than one name. Raises as `merge`."""
    check_names_and_shapes(full, model)
    tensors = _find_tensors(folder)
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    changes: dict[str, Change] = {}
    for first, *others in names_of.values():
        found = [_find_name(name, model, tensors) for name in (first, *others)]
        names = [name for name in found if name is not None]
        for name in names or [None]:
            how = _why_not(name, tensors, full.weights[first].shape)
            if name is None or how:
                raise InvalidRequest(
                    f"The base's files hold its weight '{first}' {how}, so that nothing can be put in its place. The "
                    "model answers on this server all the same.",
                    param="format",
                    code="invalid_value",
                )
            changes[name] = partial(_put_in_place, weight=full.weights[first])
    return Merged(folder, tensors, changes)


def _put_in_place(_old: Tensor, weight: Tensor) -> Tensor:
    return weight


def _find_name(name: str, model: nn.Module, tensors: Mapping[str, Stored]) -> str | None:
    """What the base's files call the model's weight `name`: some leave out the first part of their names."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return next((own for own in (name, name.removeprefix(prefix), f"{prefix}{name}") if own in tensors), None)


def _why_not(name: str | None, tensors: Mapping[str, Stored], shape: Sequence[int] | None = None) -> str:
    """How a tensor is stored that cannot be changed, or not into one of that shape; empty of one that can."""
    if name is None:
        return "under another name"
    if shape is not None and tensors[name].shape != list(shape):
        return "in another shape"
    return "" if tensors[name].dtype in DTYPES else f"as {tensors[name].dtype}"


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
        tuned = from_files(get_files(LocalStorage(Path(request["blobs"])), artifact))
        model = build_without_weights(request["base"], settings)
        folder = find_folder(request["base"], settings)
        put_in = (
            replace_weights(folder, tuned, model) if isinstance(tuned, FullWeights) else merge(folder, tuned, model)
        )
        entries = put_in.entries(request["card"])
    except CaesuraError as error:
        told = {"status": error.status, "message": error.message, "param": error.param, "code": error.code}
        output.write(json.dumps(told).encode() + b"\n")
        output.flush()
        return
    name, mtime = request["folder"], request["mtime"]
    output.write(json.dumps({"num_bytes": tar_bytes(name, entries, mtime)}).encode() + b"\n")
    for piece in write_tar(name, entries, mtime):
        output.write(piece)
    output.flush()


if __name__ == "__main__":
    main()
