"""The layers whose weights can be pruned, convolutions and linear ones, and that their weights are their own."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dfkd.errors import ModelError

WeightedLayer = _ConvNd | nn.Linear


def require_module(model: object) -> None:
    """Raise `ModelError` where `model` is no network."""
    if isinstance(model, type):
        raise ModelError(f"A network is needed, got the class {model.__name__}: make one, `{model.__name__}(...)`.")
    if not isinstance(model, nn.Module):
        raise ModelError(f"A torch.nn.Module is needed, got {type(model).__name__}.")


def weighted_layers(model: nn.Module) -> dict[str, WeightedLayer]:
    """Convolutions and linear layers by module path; of layers that share one weight, the first alone.

    Raises:
        ModelError: a layer computes its weight, by a parametrisation, a hook or a mask of `torch.nn.utils.prune`. Zeros
            of what it is computed from are not zeros of the weight.
    """
    require_module(model)
    layers: dict[int, tuple[str, WeightedLayer]] = {}
    for name, module in model.named_modules():
        if isinstance(module, WeightedLayer):
            for parameter in ("weight", "bias"):
                _require_own(name, module, parameter)
            layers.setdefault(module.weight.data_ptr() or id(module.weight), (name, module))
    return dict(layers.values())


def tied_layers(model: nn.Module) -> list[str]:
    """Module paths of the convolutions and linear layers that share the weight of another one."""
    first = weighted_layers(model)
    return [name for name, module in model.named_modules() if isinstance(module, WeightedLayer) and name not in first]


def _require_own(name: str, module: nn.Module, parameter: str) -> None:
    value = getattr(module, parameter)
    if isinstance(value, UninitializedParameter):
        raise ModelError(
            f"The lazy layer {name} has no weight yet. Let the network see one batch before it is used here: "
            "`model(torch.zeros(1, channels, height, width))`."
        )
    if value is None or (isinstance(value, nn.Parameter) and not parametrize.is_parametrized(module, parameter)):
        return
    how, remedy = _computed_by(name, module, parameter)
    raise ModelError(
        f"The {parameter} of layer {name} is {how}, so that its zeros would not be those that the layer computes with. "
        f"{remedy}"
    )


def _computed_by(name: str, module: nn.Module, parameter: str) -> tuple[str, str]:
    layer = f'model.get_submodule("{name}")'
    remove = "Make it a plain one, with the same values: "
    if parametrize.is_parametrized(module, parameter):
        what = ", ".join(type(each).__name__.lstrip("_") for each in module.parametrizations[parameter])  # type: ignore
        return (
            f"parametrised ({what})",
            f"{remove}`torch.nn.utils.parametrize.remove_parametrizations({layer}, '{parameter}')`.",
        )
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == parameter:
            return "masked by torch.nn.utils.prune", f"{remove}`torch.nn.utils.prune.remove({layer}, '{parameter}')`."
        if isinstance(hook, WeightNorm) and hook.name == parameter:
            return "computed by weight_norm", f"{remove}`torch.nn.utils.remove_weight_norm({layer}, '{parameter}')`."
        if isinstance(hook, SpectralNorm) and hook.name == parameter:
            return (
                "computed by spectral_norm",
                f"{remove}`torch.nn.utils.remove_spectral_norm({layer}, '{parameter}')`.",
            )
    return "no torch.nn.Parameter", f"Make it one: `{layer}.{parameter} = torch.nn.Parameter(...)`."
