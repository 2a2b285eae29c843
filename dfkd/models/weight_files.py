"""What a file of weights holds, read without running code from it; what is no such file is named."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dfkd.errors import WeightsError, listing
from dfkd.files import size_text

# Containers and numbers that training tools put beside the weights; none of them runs code when it is read.
HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((dict, f"{place}.AttributeDict") for place in (
        "lightning.fabric.utilities.data", "lightning.pytorch.utilities.parsing", "lightning_fabric.utilities.data",
        "pytorch_lightning.utilities.parsing",
    )),
]  # fmt: skip

IMPOSTORS = {
    b"version https://git-lfs": "a pointer of git-lfs and not the file: run `git lfs pull`",
    b"<!doctype": "a web page and not the file: download it from the address of the file itself",
    b"<html": "a web page and not the file: download it from the address of the file itself",
    b"<?xml": "an XML message and not the file: download it again",
    b"{": "JSON and no weights; an index names the files of the parts, which should be joined to one",
    b"\x89hdf": "an HDF5 file (Keras): convert it to a PyTorch state dict",
    b"\x08": "an ONNX file, or no file of weights: give the PyTorch weights that it was exported from",
}


def read_weights(path: Path, option: str) -> Any:
    """The content of a safetensors or PyTorch file: tensors by name, perhaps nested in a checkpoint.

    Args:
        path: of the file; its kind is told by its content and not by its name.
        option: what to call it in an error.

    Raises:
        WeightsError: it is missing, unreadable, no such file, or could run code when read.
    """
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())
        raise WeightsError(f"{option}: {path} is a folder. Give a file, perhaps one in it: {listing(inside)}.")
    if not path.is_file():
        raise WeightsError(f"{option}: there is no file {path}. Give the path of a safetensors or .pt/.pth file.")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{option}: {path} cannot be read ({error}).") from error
    if not start:
        raise WeightsError(f"{option}: {path} is not a readable file of weights: it is empty. Get it again.")
    # safetensors begins with the length of its header, which may look like anything.
    safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    for beginning, what in IMPOSTORS.items():
        if not safetensors and start.lstrip().lower().startswith(beginning):
            raise WeightsError(f"{option}: {path} is not a readable file of weights, but {what}.")
    read = _read_safetensors if safetensors or path.suffix == ".safetensors" else _read_pytorch
    return read(path, option)


def _read_safetensors(path: Path, option: str) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            shared = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{option}: {path} is not a readable safetensors file ({error}).") from error
    # safetensors keeps one name of tensors that were shared, and notes it for those it left out.
    return tensors | {left_out: tensors[kept] for left_out, kept in shared.items() if kept in tensors}


def require_no_zip_bomb(path: Path, option: str) -> None:
    """Raise `WeightsError` where a file of PyTorch's becomes many times larger when it is read.

    PyTorch stores its tensors as they are, but reads what is compressed, however large it becomes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # no archive, or one that is damaged
    size = path.stat().st_size
    if unpacked > 8 * size + 2**24:
        raise WeightsError(
            f"{option}: {path} has {size_text(size)}, which become {size_text(unpacked)} when unpacked, so it was "
            "refused. Save the weights again by `torch.save(model.state_dict(), path)`, which does not compress."
        )


def _read_pytorch(path: Path, option: str) -> Any:
    require_no_zip_bomb(path, option)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            warnings.filterwarnings("ignore", message=".*TorchScript archive.*")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "Unsupported global" not in text and "WeightsUnpickler" not in text:
            raise WeightsError(f"{option}: {path} is not a readable PyTorch file ({error}).") from error
        name = text.partition("GLOBAL ")[2].split(" ")[0] or "a class of its own"
        raise WeightsError(
            f"{option}: {path} holds pickled objects besides tensors ({name}), which could run code when loaded, so it "
            "was refused. Save the weights alone where you trust the file: "
            "`torch.save(model.state_dict(), path)` or `safetensors.torch.save_file(model.state_dict(), path)`."
        ) from error
    except (
        OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError,
        MemoryError,
    ) as error:  # fmt: skip
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{option}: {path} holds a TorchScript network. Save its weights alone: "
                "`torch.save(torch.jit.load(path).state_dict(), new_path)`."
            ) from error
        raise WeightsError(f"{option}: {path} is not a readable PyTorch file ({error}).") from error
