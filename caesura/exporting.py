"""Tuned models to be taken along: a tar of PEFT's two files, or of a whole model with what was trained in its weights.

Merging takes torch, so a child does it, `python -m caesura.models.merge`. On standard output its first line says how
many bytes the tar has, or what is at fault; the tar itself follows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from caesura.errors import BlobDamaged, CaesuraError, InvalidRequest, RateLimited
from caesura.executors import describe_exit
from caesura.ids import new_token
from caesura.jobs import Model
from caesura.settings import Settings
from caesura.storage import Storage
from caesura.tars import Entry, of_bytes, tar_bytes, write_tar

logger = logging.getLogger(__name__)

Format = Literal["peft", "merged"]
PIECE_BYTES = 2**20
#: Each holds some hundred MB, and reads a whole model.
MAX_MERGES = 2


@dataclass(frozen=True, slots=True)
class Export:
    """A tar under way. `close` it in the end, however that comes; from any thread."""

    #: What the folder in it is called.
    folder: str
    num_bytes: int
    #: They raise CaesuraError where they break off.
    pieces: Iterator[bytes]
    close: Callable[[], None]


class Exporter:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._merges = threading.BoundedSemaphore(MAX_MERGES)

    def open(self, model: Model, format: Format, settings: Settings, storage: Storage) -> Export:
        """Begin. Raises BlobDamaged for a model whose files are not what was written, InvalidRequest for PEFT's files
        of one that is no adapter; for a merged model InvalidRequest where its base cannot be had, or not be merged, and
        RateLimited where too many are under way."""
        if format == "peft":
            _refuse_full(model)
            return _open_adapter(model, settings, storage)
        if not self._merges.acquire(blocking=False):
            raise RateLimited("This server is merging as many models as it may at once. Please try again in a while.")
        with ExitStack() as resources:
            resources.callback(self._merges.release)
            merging = _Merging(model, settings)
            resources.callback(merging.close)
            num_bytes = merging.begin()
            return Export(_folder(model), num_bytes, merging.pieces(num_bytes), resources.pop_all().close)


def unpack(export: Export, target: Path) -> None:
    """Write the files of the export's folder into `target`, which is made, and is there only once it is whole.

    Raises InvalidRequest where it is there and not empty, or cannot be written, CaesuraError where the export breaks
    off.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidRequest(f"The folder '{target}' is there and not empty. Name another --output, or empty it.")
    whole = target.resolve()
    unfinished = whole.with_name(f".{whole.name}.{new_token()}")
    try:
        unfinished.mkdir(parents=True)
        with tarfile.open(fileobj=_Reader(export.pieces), mode="r|") as tar:
            for member in tar:
                member.name = member.name.partition("/")[2]
                tar.extract(member, unfinished, filter="data")
        unfinished.rename(whole)
    except OSError as error:
        raise InvalidRequest(
            f"The folder '{target}' cannot be written: {error.strerror}. Name another --output."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Reader(io.RawIOBase):
    """Pieces as a file, which is read from its start to its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        parts = [self._left]
        num_bytes = len(self._left)
        while size < 0 or num_bytes < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            parts.append(piece)
            num_bytes += len(piece)
        data = b"".join(parts)
        if size < 0:
            size = len(data)
        self._left = data[size:]
        return data[:size]


def refuse_base(settings: Settings, name: str) -> None:
    """Raises InvalidRequest where `name` is a base model, which is nothing of this server's making."""
    if settings.resolve_base(name) is not None:
        raise InvalidRequest(
            f"'{name}' is a base model, and only tuned models are exported. Take it from where its 'path' under "
            "[models] in caesura.toml points, or name a tuned model or a checkpoint that GET /v1/models lists.",
            param="model",
            code="invalid_value",
        )


def _refuse_full(model: Model) -> None:
    if model.adapter.is_full:
        raise InvalidRequest(
            f"'{model.name}' has weights of its own (adapter.type 'full') and no adapter that PEFT could load. Export "
            "it with format=merged.",
            param="format",
            code="invalid_value",
        )


def _folder(model: Model) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip("-.")


def _open_adapter(model: Model, settings: Settings, storage: Storage) -> Export:
    with ExitStack() as resources:
        entries = [of_bytes("README.md", _card(model, settings, "peft", "with a LoRA adapter beside it").encode())]
        for name, (size, sha256) in model.adapter.files.items():
            # Open from now on: a model that is deleted meanwhile is still read to its end.
            file = resources.enter_context(storage.open(model.adapter.key(name)))
            _check(file, name, size, sha256)
            entries.append(Entry(name, size, _read(file)))
        folder = _folder(model)
        num_bytes = tar_bytes(folder, entries, model.created_at)
        return Export(folder, num_bytes, write_tar(folder, entries, model.created_at), resources.pop_all().close)


def _check(file: BinaryIO, name: str, size: int, sha256: str) -> None:
    """Raises BlobDamaged before a byte of it is sent."""
    digest = hashlib.sha256()
    for piece in _read(file):
        digest.update(piece)
    if file.tell() != size or digest.hexdigest() != sha256:
        raise BlobDamaged(f"The stored file '{name}' does not match its checksum.")
    file.seek(0)


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _card(model: Model, settings: Settings, library: str, words: str) -> str:
    """A model card. What stands above its text is for programs; of this machine it says nothing."""
    base = settings.bases().get(model.base)
    reference = model.base if base is None else base.reference(model.base)
    head = f"---\nbase_model: {json.dumps(reference)}\nlibrary_name: {library}\n---\n"
    return f"{head}\n# {model.name}\n\n`{reference}` {words}, made by Caesura. Load it with {library}.\n"


class _Merging:
    """The child, and what it has been asked."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def begin(self) -> int:
        """How many bytes the tar will have."""
        model = self._model
        base = self._settings.bases().get(model.base)
        if base is None:
            remedy = "" if model.adapter.is_full else ", or export with format=peft"
            raise InvalidRequest(
                f"Model '{model.name}' was tuned from the base '{model.base}', which is no longer in this server's "
                f"settings. Put it back into [models] in caesura.toml{remedy}.",
                param="model",
                code="model_not_available",
            )
        words = "with all its weights tuned" if model.adapter.is_full else "with a LoRA adapter in its weights"
        request: dict[str, Any] = {
            "blobs": str(self._settings.data_dir / "blobs"),
            "adapter": {"prefix": model.adapter.prefix, "files": model.adapter.files},
            "base": model.base,
            "path": base.path,
            "card": _card(model, self._settings, "transformers", words),
            "folder": _folder(model),
            "mtime": model.created_at,
        }
        self._child = child = subprocess.Popen(
            [sys.executable, "-m", "caesura.models.merge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what it died before reading would be flushed, and fail, once more when the pipe is closed
            start_new_session=True,  # Ctrl-C is for the server, which ends this process
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it has died already: told below
            child.stdin.write(json.dumps(request).encode() + b"\n")
        line = child.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._broken_off()
        reply: dict[str, Any] = json.loads(line)
        if "message" in reply:
            raise _to_error(reply)
        return reply["num_bytes"]

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        assert self._child is not None
        assert self._child.stdout is not None
        num_left = num_bytes
        while piece := self._child.stdout.read(PIECE_BYTES):
            num_left -= len(piece)
            yield piece
        if num_left or self._child.wait():
            raise self._broken_off()

    def close(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        with self._child:  # closes its pipes, and waits
            pass

    def _broken_off(self) -> CaesuraError:
        assert self._child is not None
        cause = describe_exit(self._child.wait())
        logger.error("the process that merges '%s' ended: %s", self._model.name, cause)
        return CaesuraError(f"The model was not merged: the process that does it ended ({cause}). Try again.")


def _to_error(reply: dict[str, Any]) -> CaesuraError:
    kind = InvalidRequest if reply["status"] == InvalidRequest.status else BlobDamaged
    return kind(reply["message"], param=reply["param"], code=reply["code"])
