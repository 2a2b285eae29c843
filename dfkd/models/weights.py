"""Loading a user's weights: safely, without silent fallback, and with a message that says what does not match."""

from __future__ import annotations

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet

from dfkd.errors import WeightsError, listing
from dfkd.files import file_checksum
from dfkd.models.batch_norm import batch_norm_layers, running_statistics
from dfkd.models.classifier import classifier_of
from dfkd.models.matching import find_state
from dfkd.models.values import require_finite
from dfkd.models.weight_files import read_weights

log = logging.getLogger(__name__)

TORCHVISION = "torchvision:"
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of torchvision's GoogLeNet and Inception, for training alone
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the file at `path` into `model`, every key of it.

    Args:
        path: a safetensors file, or a PyTorch file holding a state dict, bare or nested in a checkpoint. Prefixes
            that wrappers leave on keys (`module.`, `model.`, ...) are taken off; where there are averaged weights
            (EMA, SWA) beside others, they are taken (`dfkd.models.matching.find_state`).

    Raises:
        WeightsError: the file is missing, unreadable or unsafe, its keys or shapes are not the model's, or its values
            are not finite.
    """
    load_teacher_weights(model, str(path), {})


def load_teacher_weights(
    model: nn.Module, weights: str, model_recipe: Mapping[str, Any], option: str = "teacher.weights"
) -> None:
    """Load a file's weights, or with `torchvision:NAME` those that torchvision publishes for `model_recipe["name"]`.

    Args:
        option: what to call the weights in an error.

    Raises:
        WeightsError: as `load_weights`; or torchvision has no such weights, or they could not be downloaded.
    """
    load_state(model, _state_of(model, weights, model_recipe, option), weights)
    statistics = [running_statistics(layer) for layer in batch_norm_layers(model).values()]
    if statistics and all(not mean.any() and (variance == 1).all() for mean, variance in statistics):
        log.warning(
            "%s=%s: the batch-norm statistics are those of a network that was never trained, mean 0 and variance 1, "
            "and tell nothing of the training data.", option, weights,
        )  # fmt: skip


def start_from(model: nn.Module, weights: str, model_recipe: Mapping[str, Any], num_classes: int) -> None:
    """Load what `load_teacher_weights` would, but leave the classifier as it is where theirs has other classes.

    Raises:
        WeightsError: as `load_teacher_weights`.
        ModelError: see `classifier_of`.
    """
    own = model.state_dict()
    state = _state_of(model, weights, model_recipe, "teacher.training.start")
    classifier, _ = classifier_of(model, num_classes)
    for key in (f"{classifier}.weight", f"{classifier}.bias"):
        if key in own and key in state and state[key].shape != own[key].shape:
            state[key] = own[key]
    load_state(model, state, weights)


def weights_identity(weights: str) -> str:
    """What tells weights apart: a file's checksum, or torchvision's name for them."""
    return weights if weights.startswith(TORCHVISION) else file_checksum(Path(weights).expanduser())


def _state_of(model: nn.Module, weights: str, model_recipe: Mapping[str, Any], option: str) -> dict[str, Tensor]:
    """The file's or published weights by the model's own keys."""
    if not weights.startswith(TORCHVISION):
        path = Path(weights).expanduser()
        return find_state(read_weights(path, option), model, f"{option}: {path}")
    if getattr(model, "transform_input", True) is False:
        raise WeightsError(
            f"{option}={weights}: torchvision's weights of {type(model).__name__} expect that the network normalises "
            "its input once more. Set +model.transform_input=true."
        )
    try:
        published = torchvision.models.get_model_weights(model_recipe["name"])
        entry = published[weights.removeprefix(TORCHVISION)]
        # A file that is in PyTorch's cache already is not compared with its digest.
        state = dict(entry.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (KeyError, ValueError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{option}={weights} could not be had ({type(error).__name__}: {error}). It needs a torchvision "
            "model group, one of its weights' names (DEFAULT, IMAGENET1K_V1, ...), and a network."
        ) from error
    return with_todays_keys(state) if isinstance(model, DenseNet) else state


def with_todays_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published DenseNets' `norm.1` as `norm1`, as torchvision itself reads them."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key): value for key, value in state.items()
    }


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model` strictly, naming every key that is missing, too many, or cannot be the model's.

    Raises:
        WeightsError: see `load_weights`.
    """
    expected = model.state_dict()
    state = _without_auxiliary(model, _with_tied(model, state), source)
    # A batch norm saved before PyTorch 0.4.1, or by another framework, does not count its batches; nothing uses it.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    common = [key for key in expected if key in state]
    misshapen = [
        f"{key} (file {tuple(state[key].shape)}, model {tuple(expected[key].shape)})"
        for key in common
        if state[key].shape != expected[key].shape
    ]
    mistyped = [
        f"{key} ({state[key].dtype})"
        for key in common
        if expected[key].is_floating_point() and state[key].dtype not in FLOATS
    ]
    _require_none(
        model, source, {"missing": missing, "not in the model": unexpected, "of another shape": misshapen,
                        "quantised, or no floating-point numbers": mistyped},
    )  # fmt: skip
    odd = [
        key for key in common if state[key].is_floating_point() and not state[key].to(expected[key]).isfinite().all()
    ]
    if odd:
        raise WeightsError(
            f"The weights in {source} are not finite (NaN or infinite): {listing(odd)}. They are damaged, or have "
            "overflowed in half precision: get a whole copy of them."
        )
    # Without the versions of its modules, which plain files do not hold, torchvision's MNASNet refuses any weights.
    versioned = OrderedDict(state)
    versioned._metadata = expected._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=False)
    require_finite(model)


def _require_none(model: nn.Module, source: str, problems: Mapping[str, list[str]]) -> None:
    found = [f"{what}: {listing(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise WeightsError(
            f"The weights in {source} do not belong to this {type(model).__name__}. Keys {'; '.join(found)}. "
            "Check the model group (depth, width, num_classes, in_channels, small_image_stem), or the file."
        )


def _with_tied(
    model: nn.Module,
    state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """`state` with the keys that share a tensor of the model with one that is there: savers keep one of them."""
    names: dict[Any, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault((value.data_ptr() or id(value), value.shape), []).append(name)
    filled = dict(state)
    for tied in names.values():
        present = [name for name in tied if name in state]
        if any(not torch.equal(state[present[0]], state[name]) for name in present[1:]):
            raise WeightsError(
                f"The model shares one tensor between {listing(tied)}, but the weights hold different ones for them. "
                "Build the network without sharing, or get the weights of a network that shares."
            )
        filled |= {name: state[present[0]] for name in tied if present}
    return filled


def _without_auxiliary(model: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state` without the auxiliary heads that torchvision's GoogLeNet and Inception need not have."""
    if getattr(model, "aux_logits", True) is not False:
        return state
    kept = {key: value for key, value in state.items() if not key.startswith(AUXILIARY)}
    if len(kept) < len(state):
        log.info("%s: the auxiliary heads, which only training uses, are left out.", source)
    return kept
