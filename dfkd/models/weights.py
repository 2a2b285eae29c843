"""Loading a user's weights: safely, without silent fallback, and with a message that says what does not match."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dfkd.errors import WeightsError, listing
from dfkd.files import file_checksum
from dfkd.models.classifier import classifier_of

TORCHVISION = "torchvision:"
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the file at `path` into `model`, every key of it.

    Args:
        path: a safetensors file, or a PyTorch file holding a state dict, bare or nested in a checkpoint. Prefixes
            that wrappers leave on every key (`module.`, `model.`, ...) are taken off.

    Raises:
        WeightsError: the file is missing, unreadable or unsafe, or its keys or shapes are not the model's.
    """
    state = read_state_dict(path)
    load_state(model, state, source=str(path))


def load_teacher_weights(
    model: nn.Module, weights: str, model_recipe: Mapping[str, Any], option: str = "teacher.weights"
) -> None:
    """Load a file's weights, or with `torchvision:NAME` those that torchvision publishes for `model_recipe["name"]`.

    Args:
        option: what to call the weights in an error.

    Raises:
        WeightsError: as `load_weights`; or torchvision has no such weights, or they could not be downloaded.
    """
    load_state(model, _state_of(weights, model_recipe, option), weights)


def start_from(model: nn.Module, weights: str, model_recipe: Mapping[str, Any], num_classes: int) -> None:
    """Load what `load_teacher_weights` would, but leave the classifier as it is where theirs has other classes.

    Raises:
        WeightsError: as `load_teacher_weights`.
        ModelError: see `classifier_of`.
    """
    own = model.state_dict()
    state = _strip_prefixes(_state_of(weights, model_recipe, "teacher.training.start"), set(own))
    classifier, _ = classifier_of(model, num_classes)
    for key in (f"{classifier}.weight", f"{classifier}.bias"):
        if key in own and key in state and state[key].shape != own[key].shape:
            state[key] = own[key]
    load_state(model, state, weights)


def weights_identity(weights: str) -> str:
    """What tells weights apart: a file's checksum, or torchvision's name for them."""
    return weights if weights.startswith(TORCHVISION) else file_checksum(Path(weights))


def _state_of(weights: str, model_recipe: Mapping[str, Any], option: str) -> dict[str, Tensor]:
    if not weights.startswith(TORCHVISION):
        return read_state_dict(weights, option)
    try:
        published = torchvision.models.get_model_weights(model_recipe["name"])
        return dict(published[weights.removeprefix(TORCHVISION)].get_state_dict(progress=True, check_hash=True))
    except (KeyError, ValueError, OSError) as error:
        raise WeightsError(
            f"{option}={weights} could not be had ({type(error).__name__}: {error}). It needs a torchvision "
            "model group, one of its weights' names (DEFAULT, IMAGENET1K_V1, ...), and a network."
        ) from error


def read_state_dict(path: str | Path, option: str = "teacher.weights") -> dict[str, Tensor]:
    """The state dict in a safetensors or PyTorch file, read without unpickling code (see `load_weights`)."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{option}: there is no file {path}. Give the path of a safetensors or .pt/.pth file.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{option}: {path} is not a readable safetensors file ({error}).") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error) and "WeightsUnpickler" not in str(error):
            raise WeightsError(f"{option}: {path} is not a readable PyTorch file ({error}).") from error
        raise WeightsError(
            f"{option}: {path} holds pickled objects besides tensors, which could run code when loaded, so it "
            "was refused. Save the weights alone where you trust the file: "
            "`torch.save(model.state_dict(), path)` or `safetensors.torch.save_file(model.state_dict(), path)`."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"{option}: {path} is not a readable PyTorch file ({error}).") from error
    return _unwrap(content, path, option)


def _unwrap(content: Any, path: Path, option: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        nested = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if nested is None and tensors:
            return tensors
        content = nested
    raise WeightsError(
        f"{option}: {path} holds no state dict. It should be a mapping of names to tensors, bare or under one "
        f"of the keys {', '.join(WRAPPER_KEYS)}."
    )


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model` strictly, naming every missing, unexpected and misshapen key (see `load_weights`)."""
    expected = model.state_dict()
    state = _strip_prefixes(dict(state), set(expected))
    # A batch norm saved before PyTorch 0.4.1, or by another framework, does not count its batches; nothing uses it.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} (file {tuple(state[key].shape)}, model {tuple(expected[key].shape)})"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{what}: {listing(keys)}"
        for what, keys in (("missing", missing), ("not in the model", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"The weights in {source} do not belong to this {type(model).__name__}. Keys {'; '.join(problems)}. "
            "Check the model group (depth, width, num_classes, in_channels, small_image_stem), or the file."
        )
    model.load_state_dict(state, strict=False)


def _strip_prefixes(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    while not expected & state.keys():
        prefix = next((p for p in WRAPPER_PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
