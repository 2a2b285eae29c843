"""Value and gradient of the inversion objective, by the fastest way that works: compiled, plain, or in parts.

All three compute the same mathematics; they differ by rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dfkd.errors import InversionError
from dfkd.inversion.objective import InversionObjective, Terms
from dfkd.inversion.statistics import Statistics, pooled

log = logging.getLogger(__name__)

# What `auto` is based on, measured on a 2-core CPU with ResNet-20 at batch 256 (`make bench`): compiling saves about
# a quarter of the time and costs about two seconds per batch-norm layer. In bfloat16, where the plain way is quick
# (`quick_in_bfloat16`), it saved a tenth of ResNet-18's and a quarter of ResNet-20's on one core of an AMD EPYC.
# Rates are in operations per second. They know nothing of the machine's threads, so that the decision is the same
# however many processes share them.
COMPILE_SECONDS_PER_LAYER = 2.0
SHARE_SAVED = {torch.float32: 0.25, torch.bfloat16: 0.15}
CPU_RATE = {torch.float32: 7e10, torch.bfloat16: 2e11}
GPU_RATE = 1e13


class ObjectiveGradient:
    """Calling it with images (B, C, H, W) and labels (B,) gives the objective's terms and the gradient to the images.

    Args:
        objective: what to differentiate.
        compiled_batch: batches of this size go through `torch.compile`, those of other sizes do not (each size would
            be compiled anew); None compiles nothing. If compiling fails, it is said once and the plain way is used.
        parts: in how many parts a batch is sent through the networks. More parts need less memory for the same
            result, and a third more time. Where memory runs out their number is doubled.
    """

    def __init__(self, objective: InversionObjective, compiled_batch: int | None = None, parts: int = 1) -> None:
        self.objective = objective
        self.compiled_batch = compiled_batch
        self.parts = parts
        self.compiled = None
        if compiled_batch is not None:
            device = next(objective.teacher.parameters()).device
            mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former: CUDA graphs
            self.compiled = torch.compile(objective, fullgraph=True, dynamic=False, mode=mode)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Terms, Tensor]:
        while True:
            try:
                return self._at_once(images, labels) if self.parts == 1 else self._in_parts(images, labels)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.parts >= len(images):
                    raise InversionError(
                        f"Memory ran out even for a single image ({error}). Use a device with more memory."
                    ) from error
            self.parts = min(2 * self.parts, len(images))
            self.compiled = None
            torch.cuda.empty_cache()
            log.warning(
                "Memory ran out: batches of %d images go through the network in %d parts from here on, with the same "
                "result, more slowly.", len(images), self.parts,
            )  # fmt: skip

    def _at_once(self, images: Tensor, labels: Tensor) -> tuple[Terms, Tensor]:
        if self.compiled is not None and len(images) == self.compiled_batch:
            try:
                torch.compiler.cudagraph_mark_step_begin()
                return _differentiate(self.compiled, images, labels)
            except Exception as error:
                if _out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                log.warning("The objective cannot be compiled, so it runs uncompiled, with the same result: %s", reason)
                self.compiled = None
        return _differentiate(self.objective, images, labels)

    def _in_parts(self, images: Tensor, labels: Tensor) -> tuple[Terms, Tensor]:
        """A forward without gradients collects the batch's statistics; a second one sends their gradient back."""
        parts = list(zip(images.chunk(self.parts), labels.chunk(self.parts), strict=True))
        shares = [len(part) / len(images) for part, _ in parts]
        with torch.no_grad():
            collected = [self._statistics(part) for part, _ in parts]
        statistics = {
            name: [_pooled_leaves([part[name][use] for part in collected], shares) for use in range(len(record))]
            for name, record in collected[0].items()
        }
        terms: Terms = {}
        slopes: list[Tensor] = []
        leaves = [leaf for record in statistics.values() for pair in record for leaf in pair]
        if leaves:
            terms["feature"] = self.objective.feature_distance(statistics)
            feature = self.objective.weights["feature"] * terms["feature"]
            slopes = list(torch.autograd.grad(feature, leaves, materialize_grads=True))

        gradients = []
        for (part, part_labels), share in zip(parts, shares, strict=True):
            image_terms, gradient = self._part(part, part_labels, share, leaves, slopes)
            gradients.append(gradient)
            for name, value in image_terms.items():
                terms[name] = terms.get(name, 0) + share * value
        gradient = torch.cat(gradients)

        leaf = images.detach().requires_grad_(True)
        priors = self.objective.priors(leaf)
        if priors:
            (prior_gradient,) = torch.autograd.grad(self.objective.summed(priors)["total"], leaf)
            gradient = gradient + prior_gradient
        detached = {name: value.detach() for name, value in (terms | priors).items()}
        return self.objective.summed(detached), gradient

    def _part(
        self, images: Tensor, labels: Tensor, share: float, leaves: list[Tensor], slopes: list[Tensor]
    ) -> tuple[Terms, Tensor]:
        """The image terms of a part, and the gradient to its images of all terms but the priors.

        R_feature depends on the statistics of the whole batch, so its gradient is that of the linear function
        `g_mean . mean + g_variance . E[(x - batch mean)^2]`, which is a sum over parts. Means and variances of the
        batch, and their slopes, alternate in `leaves` and `slopes`.
        """
        leaf = images.detach().requires_grad_(True)
        with self.objective.recorded() as records:
            image_terms = self.objective.image_terms(leaf, labels)
            pairs = [pair for record in records.values() for pair in record]
        summands = [self.objective.weighted(name, value) for name, value in image_terms.items()]
        for (mean, variance), batch_mean, g_mean, g_variance in zip(
            pairs, leaves[::2], slopes[::2], slopes[1::2], strict=True
        ):
            # Sums and no products of matrices, which autocast would make in half precision.
            summands.append((g_mean * mean).sum())
            summands.append((g_variance * (variance + (mean - batch_mean.detach()).square())).sum())
        (gradient,) = torch.autograd.grad(share * torch.stack(summands).sum(), leaf)
        return {name: value.detach() for name, value in image_terms.items()}, gradient

    def _statistics(self, images: Tensor) -> dict[str, list[Statistics]]:
        with self.objective.recorded() as records:
            self.objective.teacher(images)
            return {name: list(record) for name, record in records.items()}


def worth_compiling(objective: InversionObjective, images: Tensor, iterations: int) -> bool:
    """Whether compiling the objective saves more time than it costs, over `iterations` on batches like `images`.

    To be asked under the autocast that the iterations will run under.

    It is decided by counting operations, not by a clock, and for the whole job, not for what is left of it: a job
    that was interrupted is continued in the same way.
    """
    with torch.no_grad(), objective.recorded(), FlopCounterMode(display=False) as counter:
        objective.teacher(images[:1])
    operations = 2 * int(counter.get_total_flops()) * len(images) * iterations  # forward, and back to the images
    dtype = torch.float32
    if images.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    rate = CPU_RATE[dtype] if images.device.type == "cpu" else GPU_RATE
    return SHARE_SAVED[dtype] * operations / rate > COMPILE_SECONDS_PER_LAYER * len(objective.layers)


def _differentiate(
    objective: InversionObjective | Callable[[Tensor, Tensor], Terms], images: Tensor, labels: Tensor
) -> tuple[Terms, Tensor]:
    leaf = images.detach().requires_grad_(True)
    terms = objective(leaf, labels)
    (gradient,) = torch.autograd.grad(terms["total"], leaf)
    return {name: value.detach() for name, value in terms.items()}, gradient


def _pooled_leaves(parts: list[Statistics], shares: list[float]) -> Statistics:
    """The statistics of a whole from those of its parts, as leaves of a new graph."""
    mean, variance = pooled(parts, shares)
    return mean.requires_grad_(True), variance.requires_grad_(True)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
