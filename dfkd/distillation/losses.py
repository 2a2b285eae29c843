"""What a student is taught on a batch of images: the teacher's softened outputs, and its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.distillation.batch_norm import paired_layers
from dfkd.models.batch_norm import channel_statistics, quick_in_bfloat16
from dfkd.precision import widened
from dfkd.training.ranks import ALONE, Ranks

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """t^2 KL(softmax(teacher / t) || softmax(student / t)), mean over the batch (Hinton et al. 2015), in float32.

    In bfloat16 that of nearly equal networks would be rounding, and could be negative.

    Args:
        student_logits: (B, classes).
        teacher_logits: (B, classes).
        temperature: t, above 0.
    """
    log_student = F.log_softmax(widened(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(widened(teacher_logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def feature_error(student: Tensor, teacher: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean squared difference in units of the teacher's variance: 0 when equal, about 2 when unrelated.

    The gradient goes to the student alone. Where `ranks` share a batch, the variance is that of the whole, and the mean
    of their errors its error.
    """
    error: Tensor = _FeatureError.apply(student, teacher, ranks)
    return error


def _moments(x: Tensor) -> Tensor:
    """Sum of the squares and mean of all of `x`, (2,) in float32."""
    if quick_in_bfloat16(x):
        mean, variance = channel_statistics(x)
        return torch.stack([(variance + mean.square()).mean() * x.numel(), mean.mean()])
    return torch.stack([torch.linalg.vector_norm(x).square(), x.mean()])


class _FeatureError(torch.autograd.Function):
    """Norms in place of squares and means: features are large, and each reading of them costs as much as the next."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, ranks: Ranks) -> Tensor:
        ctx.dtype = student.dtype
        if not (quick_in_bfloat16(student) and quick_in_bfloat16(teacher)):
            student, teacher = student.float(), teacher.float()  # as they are, but under half-precision autocast
        difference, count = student - teacher, ranks.count * teacher.numel()
        moments = ranks.mean(_moments(teacher))
        spread = ranks.count * moments[0] - count * moments[1].square()
        scale = (spread * count / max(1, count - 1)).clamp_min(1e-12 * count).reciprocal()  # 1 / (n var)
        scale = ranks.count * scale  # the mean over ranks then is the sum over the batch
        ctx.save_for_backward(difference, scale)
        return _moments(difference)[0] * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        difference, scale = ctx.saved_tensors
        return (2 * gradients[0] * scale * difference).to(ctx.dtype), None, None


@contextmanager
def matched_features(teacher: nn.Module, student: nn.Module, ranks: Ranks = ALONE) -> Iterator[list[Tensor]]:
    """Within the context, a forward of the teacher and then one of the student fill the list that is given.

    It gets one `feature_error` per use of a batch-norm layer, between the outputs of the two networks' layers of the
    same name, where filters were pruned on the channels that are left. No hook stays on the models.

    Raises:
        ConfigError: the networks' batch-norm layers have different names.
    """
    pairs = paired_layers(teacher, student, "distillation.feature_weight", "Set it to 0")
    expected: dict[str, list[Tensor]] = {name: [] for name in pairs}
    errors: list[Tensor] = []

    # An in-place activation may overwrite a layer's output right after the hook: the teacher's is copied, the
    # student's is compared on the spot.
    def keep(name: str) -> Hook:
        channels = getattr(pairs[name][1], "teacher_channels", None)  # filter pruning leaves some of them
        if channels is None:
            return lambda _module, _inputs, output: expected[name].append(output.detach().clone())
        return lambda _module, _inputs, output: expected[name].append(output.detach()[:, channels.to(output.device)])

    def compare(name: str) -> Hook:
        return lambda _module, _inputs, output: errors.append(feature_error(output, expected[name].pop(0), ranks))

    handles = [layer.register_forward_hook(keep(name)) for name, (layer, _) in pairs.items()]
    handles += [layer.register_forward_hook(compare(name)) for name, (_, layer) in pairs.items()]
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()
