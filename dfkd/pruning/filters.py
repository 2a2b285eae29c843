"""Filter pruning: whole output channels go, and with them everything that only served them: students really smaller.

Torch-Pruning finds which channels must go together (through residual sums, concatenations, depthwise convolutions) and
cuts them out. Here is decided which: filters go a few at a time, those of least importance first, until the network
has lost the share `amount` of its multiply-adds.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dfkd.errors import ModelError, listing, require
from dfkd.models.batch_norm import batch_norm_layers, running_statistics, teacher_channels
from dfkd.models.cost import multiply_adds
from dfkd.models.freezing import frozen, requiring_grad
from dfkd.models.input_spec import count_classes
from dfkd.models.layers import tied_layers
from dfkd.models.student_file import note_teacher_shapes, teacher_shapes
from dfkd.pruning.sparsity import prunable_weights
from dfkd.pruning.unstructured import require_share
from dfkd.seeding import derive_seed

Importance = Callable[[tp.Group], Tensor]

log = logging.getLogger(__name__)

IMPORTANCES = ("l1", "l2", "batch_norm_scale")
TAYLOR_BATCH = 128
STEP = 0.02  # share of the filters that goes between two measurements of importance
TINY = torch.finfo(torch.float).tiny
LEAST = 0.1  # share of a layer's filters that always stays


def prune_filters(
    model: nn.Module,
    amount: float,
    image_shape: tuple[int, int, int],
    importance: str = "l1",
    teacher: nn.Module | None = None,
) -> None:
    """Cut out the filters of least weight until the share `amount` of the multiply-adds is gone, in place.

    Args:
        model: its layers shrink; every batch-norm layer gets `teacher_channels`, the channels (C',) it kept.
        amount: share of the multiply-adds, in [0, 1).
        image_shape: (C, H, W) of its input.
        importance: of a filter, relative to its layer's mean: `l1` or `l2` norm of its weights, or
            `batch_norm_scale`, |gamma| of the batch norm behind it (Liu et al. 2017).
        teacher: the network that `amount` is a share of; None: `model` as it is.

    Raises:
        ConfigError: an option's value is not allowed.
        ModelError: the network cannot be traced, has no filter that can go, or cannot lose so much.
    """
    require(importance in IMPORTANCES, "pruning.importance", importance, f"one of {IMPORTANCES}")

    def weight(_name: str, layer: nn.Module) -> Tensor | None:
        if layer.weight is None:
            return None  # a batch norm without a scale
        values = layer.weight.detach()  # type: ignore[operator]
        size = values.abs() if importance == "batch_norm_scale" else values.flatten(1).norm(int(importance[1]), dim=1)
        return size / size.mean().clamp_min(TINY)

    kind = _BatchNorm if importance == "batch_norm_scale" else _ConvNd
    _prune(model, amount, image_shape, teacher, lambda graph: lambda group: graph.sum_over(group, kind, weight))


def prune_filters_by_taylor(
    model: nn.Module,
    amount: float,
    dreams: Tensor,
    seed: int = 0,
    relative: bool = True,
    teacher: nn.Module | None = None,
) -> None:
    """Cut out the filters that the predictions on dreams depend on least, as `prune_filters` does by weight.

    The importance of a filter is the mean over batches of (sum g w)^2 over its weights (Molchanov et al. 2019), with
    g the gradient of the loss against labels drawn from the teacher's predictions. That gradient's mean is the one of
    KL(teacher || student), which DeepInversion uses; its spread adds the second-order change of the same divergence.
    Without it nothing could be told at the start, where student and teacher are equal and the gradient of KL is 0.

    Args:
        dreams: images (N, C, H, W) in normalised input space.
        seed: of the labels that are drawn.
        relative: to the mean of its layer, as by weight; else filters of all layers are compared as they are (DI).
        teacher: the network that `amount` is a share of and whose predictions count; None: `model` as it is.
    """
    teacher = copy.deepcopy(model) if teacher is None else teacher
    generator = torch.Generator().manual_seed(derive_seed(seed, "Taylor importance"))

    def measure(graph: _Graph) -> Importance:
        scores = _taylor(model, teacher, dreams, generator)
        if relative:
            scores = {name: score / score.mean().clamp_min(TINY) for name, score in scores.items()}
        return lambda group: graph.sum_over(group, _ConvNd, lambda name, _convolution: scores[name])

    _prune(model, amount, tuple(dreams.shape[1:]), teacher, measure)  # type: ignore[arg-type]


def _prune(
    model: nn.Module,
    amount: float,
    image_shape: tuple[int, int, int],
    teacher: nn.Module | None,
    measure: Callable[[_Graph], Importance],
) -> None:
    require_share(amount)
    count_classes(model, image_shape)
    prunable_weights(model)
    tied = tied_layers(model)
    if tied:
        raise ModelError(
            f"{type(model).__name__} has layers that share the weight of others ({listing(tied)}), which filter "
            "pruning would part. Prune single weights instead, for instance pruning=magnitude."
        )
    original = copy.deepcopy(model)
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device)
    before = multiply_adds(model if teacher is None else teacher, image_shape)
    roots = _roots_that_can_go(model, images)
    graph = _Graph(model, images)
    least = {name: LEAST * len(group[0].idxs) for name, group in graph.groups(roots).items()}
    while multiply_adds(model, image_shape) > (1 - amount) * before:
        importance = measure(graph)
        groups = graph.groups(roots)
        scores = {name: importance(group) for name, group in groups.items()}
        chosen = _least_important(scores, least)
        if not any(chosen.values()):
            raise ModelError(
                f"{type(model).__name__} cannot lose {amount:.0%} of its multiply-adds (pruning.amount): a tenth of "
                f"the filters of every layer stays, and then {1 - multiply_adds(model, image_shape) / before:.0%} is "
                "gone. Lower it."
            )
        for name, channels in chosen.items():
            graph.group(name, channels).prune()
    _note_teacher(model, original, graph.graph.pruning_history(), images)


def _least_important(scores: dict[str, Tensor], least: dict[str, float]) -> dict[str, list[int]]:
    """The channels of least score over all groups: `STEP` of them, and never so many that a group has too few."""
    ranked = sorted((score, name, channel) for name in scores for channel, score in enumerate(scores[name].tolist()))
    left = max(1, round(STEP * len(ranked)))
    chosen: dict[str, list[int]] = {}
    for _, name, channel in ranked:
        gone = chosen.get(name, [])
        if left and len(scores[name]) - len(gone) - 1 >= max(1, least[name]):
            chosen[name] = [*gone, channel]
            left -= 1
    return chosen


class _Graph:
    """Torch-Pruning's dependency graph of a model, with groups known by the name of their first convolution."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.modules = dict(model.named_modules())
        with torch.enable_grad(), frozen(model), requiring_grad(True, model):  # the trace follows gradients
            try:
                self.graph = tp.DependencyGraph().build_dependency(model, example_inputs=images, verbose=False)
            except Exception as error:
                raise ModelError(
                    f"{type(model).__name__} could not be traced for filter pruning ({type(error).__name__}: {error}). "
                    "Prune single weights instead, for instance pruning=magnitude."
                ) from error

    def groups(self, roots: Iterable[str] | None = None) -> dict[str, tp.Group]:
        """All groups, or those with the given roots, each with all its channels."""
        groups = self.graph.get_all_groups(root_module_types=(_ConvNd,))
        named = {self.names[group[0].dep.target.module]: group for group in groups}
        return named if roots is None else {name: named[name] for name in roots}

    def group(self, root: str, channels: list[int]) -> tp.Group:
        """The group of some of a root's channels."""
        pruner = self.graph.get_pruner_of_module(self.modules[root])
        return self.graph.get_pruning_group(self.modules[root], pruner.prune_out_channels, sorted(channels))

    def sum_over(
        self, group: tp.Group, kind: type[nn.Module], values: Callable[[str, nn.Module], Tensor | None]
    ) -> Tensor:
        """Per channel of the group's root, the sum of `values` (C,) of the layers of a kind that lose it with it."""
        total, known = torch.zeros(len(group[0].idxs), dtype=torch.double), False
        for item in group:
            layer = item.dep.target.module
            if isinstance(layer, kind) and self.graph.is_out_channel_pruning_fn(item.dep.handler):
                found = values(self.names[layer], layer)
                if found is not None:
                    known = True
                    total.index_add_(0, torch.tensor(item.root_idxs), found.double().cpu()[item.idxs])
        if not known:
            root = self.names[group[0].dep.target.module]
            raise ModelError(
                f"pruning.importance=batch_norm_scale needs a batch norm with a scale behind every convolution, but "
                f"{root} has none. Use l1 or l2."
            )
        return total


def _roots_that_can_go(model: nn.Module, images: Tensor) -> list[str]:
    """Roots of the groups whose removal changes nothing but what removing channels must change.

    A trace may miss how channels are tied together (padded shortcuts, fixed sizes, the output itself). So channels are
    cut out of a copy on trial, and it must then compute what another copy does, in which they are only set to zero.
    """
    groups = _Graph(model, images).groups()
    roots = [name for name, group in groups.items() if len(group[0].idxs) > 1 and not _is_grouped(group)]
    sound = (
        roots
        if _cut_like_zeroed(model, images, roots)
        else [root for root in roots if _cut_like_zeroed(model, images, [root])]
    )
    if not sound:
        raise ModelError(
            f"{type(model).__name__} has no convolution whose filters can go. Prune single weights instead."
        )
    whole = [root for root in groups if root not in sound]
    if whole:
        log.info("Filter pruning leaves whole, with all that is tied to them: %s", listing(whole))
    return sound


def _is_grouped(group: tp.Group) -> bool:
    """Whether a convolution in groups, other than a depthwise one, is among the layers: its groups must stay equal."""
    convolutions = [item.dep.target.module for item in group if isinstance(item.dep.target.module, _ConvNd)]
    return any(each.groups > 1 and not each.groups == each.in_channels == each.out_channels for each in convolutions)


@torch.no_grad()
def _cut_like_zeroed(model: nn.Module, images: Tensor, roots: list[str]) -> bool:
    cut, zeroed = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    cutting, zeroing = _Graph(cut, images), _Graph(zeroed, images)
    try:
        for root, group in zeroing.groups(roots).items():
            channels = [0, len(group[0].idxs) - 1][: len(group[0].idxs) - 1]
            for item in zeroing.group(root, channels):
                layer = item.dep.target.module
                if zeroing.graph.is_out_channel_pruning_fn(item.dep.handler):
                    for value in (*layer.parameters(recurse=False), getattr(layer, "running_mean", None)):
                        if value is not None:
                            value[item.idxs] = 0
            cutting.group(root, channels).prune()
        expected, found = zeroed(images), cut(images)
    except Exception:  # whatever Torch-Pruning cannot do is not done
        return False
    scale = expected.abs().max().item()
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)


def _taylor(student: nn.Module, teacher: nn.Module, dreams: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Mean over batches of (sum g w)^2 of every convolution's filters, by name."""
    probe = copy.deepcopy(student).eval().requires_grad_(True)
    for layer in batch_norm_layers(probe).values():
        layer.train()  # a pruned network's running statistics are no longer its own
    weights = {name: module.weight for name, module in probe.named_modules() if isinstance(module, _ConvNd)}
    scores = {name: torch.zeros(len(weight)) for name, weight in weights.items()}
    batches = [batch for batch in dreams.split(TAYLOR_BATCH) if len(batch) > 1]  # one image has no batch statistics
    device = next(probe.parameters()).device
    for batch in batches:
        images = batch.to(device).float()
        with torch.no_grad(), frozen(teacher):
            probabilities = teacher(images).softmax(1).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(device)
        with torch.enable_grad():
            loss = F.cross_entropy(probe(images), labels)
            # A convolution that the network does not use has no gradient, and scores nothing.
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            scores[name] += (weight.detach() * gradient).flatten(1).sum(1).square().cpu() / len(batches)
    return scores


def _note_teacher(model: nn.Module, original: nn.Module, history: list[Any], images: Tensor) -> None:
    """Set `teacher_channels` of the batch-norm layers, note the teacher's shapes, and give back `requires_grad`.

    For the channels, the same cuts are made in a copy of the original whose running means are the channels' numbers.
    """
    shapes = {name: list(value.shape) for name, value in original.state_dict().items()} | teacher_shapes(original)
    note_teacher_shapes(model, shapes)
    asked = {name: parameter.requires_grad for name, parameter in original.named_parameters()}
    for name, parameter in model.named_parameters():  # those that were cut are new ones
        parameter.requires_grad_(asked[name])
    for layer in batch_norm_layers(original).values():
        running_statistics(layer)[0].copy_(teacher_channels(layer))
    _Graph(original, images).graph.load_pruning_history(history)
    numbered = batch_norm_layers(original)
    for name, layer in batch_norm_layers(model).items():
        layer.teacher_channels = running_statistics(numbered[name])[0].round().long().cpu()
