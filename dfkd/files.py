"""Files that are either whole or not there: written to a temporary name and renamed, and checked when read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dfkd.errors import ArtifactError

ENVELOPE = "dfkd"
GZIP = b"\x1f\x8b"  # how a compressed file begins
LARGEST = 2**31  # bytes that one may hold
DAMAGED = (SafetensorError, OSError, EOFError, zlib.error, ValueError, AttributeError, TypeError, RecursionError,
           MemoryError)  # fmt: skip


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; when the block ends well it replaces `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` as JSON in one step; NaN and infinities are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None, compressed: bool = False) -> None:
    """Write tensors, and `notes` as JSON, to a safetensors file that carries its own checksum, or that file's gzip."""
    # Channels-last weights are stored contiguous: safetensors holds values, not memory formats.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(notes, allow_nan=False)
    # One entry, because safetensors writes several in any order: equal content gives equal bytes.
    envelope = json.dumps({"notes": text, "sha256": _checksum(tensors, text)})
    with replacing(path) as temporary:
        content = save(tensors, metadata={ENVELOPE: envelope})
        temporary.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and notes of a file written by `save_tensors`, compressed or not.

    Raises:
        ArtifactError: the file is missing, cut short, or does not match its checksum.
    """
    try:
        with _uncompressed(path) as plain, safe_open(plain, framework="pt") as file:
            envelope = json.loads((file.metadata() or {}).get(ENVELOPE, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        text = envelope.get("notes", "")
        if envelope.get("sha256") != _checksum(tensors, text):
            raise ArtifactError(f"{path} does not match its checksum: it was changed or damaged.")
        return tensors, json.loads(text)
    except DAMAGED as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}).") from error


@contextlib.contextmanager
def _uncompressed(path: Path) -> Iterator[Path]:
    """A file with the content of `path`, which may be compressed, up to `LARGEST`: some are made to fill disks."""
    with path.open("rb") as file:
        if file.read(2) != GZIP:
            yield path
            return
    with tempfile.NamedTemporaryFile() as whole, gzip.open(path) as content:
        while block := content.read(2**20):
            if whole.tell() > LARGEST:
                raise ValueError(f"it holds more than {size_text(LARGEST)}")
            whole.write(block)
        whole.flush()
        yield Path(whole.name)


def _checksum(tensors: Mapping[str, Tensor], notes: str) -> str:
    digest = hashlib.sha256(notes.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where caches go: `$DFKD_CACHE`, `$XDG_CACHE_HOME/dfkd` or `~/.cache/dfkd`."""
    if own := os.environ.get("DFKD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfkd"


def size_text(size: float) -> str:
    """Bytes for a reader: `1.2 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
