"""A student's batch norm: its statistics re-estimated without a gradient, and how it normalises while it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.errors import ConfigError
from dfkd.models.batch_norm import (
    batch_norm_layers,
    channel_statistics,
    is_standard,
    momentum,
    running_statistics,
    teacher_channels,
)
from dfkd.models.freezing import LEARNING_MOMENTUM, frozen, replaced_forward
from dfkd.training.ranks import ALONE, Ranks, normalised

REMEDY = "Set it to live or frozen, and distillation.feature_weight to 0,"
MOST_RATIO = 64.0  # of variances, of a channel that dreams hardly move or move too much

Shifts = list[
    tuple[Tensor, Tensor]
]  # u and r of each forward of a teacher's layer that the student's has yet to follow


@contextmanager
def aligned_batch_norm(
    teacher: nn.Module, student: nn.Module, follow: float | None = LEARNING_MOMENTUM, ranks: Ranks = ALONE
) -> Iterator[None]:
    """Within the context, the student's batch norm gives its images the mean and variance that the teacher's does.

    Dreams have other statistics than real images, in the teacher as in the student; only what is different between the
    two on the same images is the student's own. Per channel, let m_T and v_T be the mean and variance of the
    input of the teacher's layer in a batch, mu and s^2 its running ones, u = (m_T - mu) / s and r = v_T / s^2; and m
    and v those of the input of the student's layer of that name. The student's output is

        y = weight (sqrt(r) (x - m) / sqrt(v) + u) + bias

    with the gradient of batch norm, and its running statistics follow the variance v / r and the mean
    m - u sqrt(v / r): those that give y in eval mode, and where student and teacher are equal, mu and s^2, whatever
    the images. (r is kept within a factor of 64; eps is added to each variance.)

    A forward of the teacher, in eval mode, comes first, then one of the student on the same images. Layers with a
    `forward` of their own keep it. Nothing stays on the models.

    Args:
        teacher: in eval mode.
        student: in training mode.
        follow: momentum of its running statistics, in place of its layers' own; None: a cumulative mean.
        ranks: those that share a batch; all statistics are those of the whole.

    Raises:
        ConfigError: the networks' batch-norm layers have different names or channels (`paired_layers`).
    """
    pairs = paired_layers(teacher, student, "distillation.batch_norm=aligned", REMEDY)
    standard = {name: cast(_BatchNorm, layer) for name, (_, layer) in pairs.items() if is_standard(layer)}
    with ExitStack() as stack:
        stack.enter_context(momentum(student, follow))  # of layers with a forward of their own
        for name, layer in standard.items():
            shifts: Shifts = []
            teachers = cast(_BatchNorm, pairs[name][0])
            stack.callback(
                teachers.register_forward_pre_hook(
                    _shift_recorder(teachers, teacher_channels(layer), shifts, ranks)
                ).remove
            )
            stack.enter_context(replaced_forward(layer, _aligned_forward(layer, shifts, follow, ranks)))
        yield


def _shift_recorder(layer: _BatchNorm, channels: Tensor, shifts: Shifts, ranks: Ranks) -> Callable[..., None]:
    """A hook on a teacher's layer that appends u and r of its input, for the channels that the student still has."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = ranks.moments(*channel_statistics(inputs[0].detach()))
        running_mean, running_var = running_statistics(layer)
        scale = (running_var + layer.eps).rsqrt()
        ratio = ((variance + layer.eps) * scale.square()).clamp(1 / MOST_RATIO, MOST_RATIO)
        kept = channels.to(mean.device)
        shifts.append((((mean - running_mean) * scale)[kept], ratio[kept]))

    return hook


def _aligned_forward(
    layer: _BatchNorm, shifts: Shifts, follow: float | None, ranks: Ranks
) -> Callable[[Tensor], Tensor]:
    """The forward of a student's layer, which takes u and r in the order in which the teacher's was called."""

    def forward(x: Tensor) -> Tensor:
        shift, ratio = shifts.pop(0)
        own_weight = 1.0 if layer.weight is None else layer.weight
        weight, bias = own_weight * ratio.sqrt(), own_weight * shift
        if layer.bias is not None:
            bias = bias + layer.bias
        output, mean, variance, count = normalised(x, weight, bias, layer.eps, ranks)
        with torch.no_grad():
            own = (variance * (count - 1) / count + layer.eps) / ratio  # biased, as the teacher's in the ratio
            running_mean, running_var = running_statistics(layer)
            done = cast(Tensor, layer.num_batches_tracked).add_(1)
            share = 1 / done.item() if follow is None else follow
            running_mean.lerp_(mean - shift * own.sqrt(), share)
            running_var.lerp_((own - layer.eps).clamp_min(0), share)
        return output

    return forward


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor], teacher: nn.Module | None = None) -> None:
    """Replace the running statistics of `model`'s batch-norm layers by their mean over `batches`.

    While it runs only the batch-norm layers are in training mode, so that dropout keeps out of the statistics.

    Args:
        model: changed in place.
        batches: images (B, C, H, W) in normalised input space, on the models' device; every batch counts the same.
        teacher: the statistics are aligned with its own (`aligned_batch_norm`). None: they are those of the images.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    aligned: AbstractContextManager[None] = nullcontext()
    if teacher is not None:
        aligned = aligned_batch_norm(teacher, model, follow=None)
    with torch.no_grad(), frozen(model, teacher), momentum(model, None), aligned:
        for layer in layers:
            layer.reset_running_stats()
            layer.training = True
        for images in batches:
            if teacher is not None:
                teacher(images)
            model(images)


def paired_layers(
    teacher: nn.Module, student: nn.Module, option: str, remedy: str
) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The batch-norm layers of teacher and student, by their common name.

    Raises:
        ConfigError: they have different names, or channels that the teacher's do not have; `option` asks for them and
            `remedy` says what to do instead.
    """
    teachers, students = batch_norm_layers(teacher), batch_norm_layers(student)
    if teachers.keys() != students.keys():
        raise ConfigError(
            f"{option} matches layers of the same name, but teacher and student have different batch-norm layers "
            f"({len(teachers)} and {len(students)}). {remedy} for a student of another architecture."
        )
    for name, layer in students.items():
        own, others = (len(running_statistics(each)[0]) for each in (layer, teachers[name]))
        if own != others and getattr(layer, "teacher_channels", None) is None:  # filter pruning notes what is left
            raise ConfigError(
                f"{option} matches layers channel by channel, but {name} has {others} channels in the teacher and "
                f"{own} in the student. {remedy} for a student of another architecture."
            )
    return {name: (layer, students[name]) for name, layer in teachers.items()}
