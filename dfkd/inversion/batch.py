"""One planned batch from its start to dreams."""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd.dreams.bank import Dreams
from dfkd.errors import InversionError
from dfkd.inversion.checkpoint import BatchCheckpoint
from dfkd.inversion.engine import OnCheck, optimise
from dfkd.inversion.gradient import ObjectiveGradient
from dfkd.inversion.plan import PlannedBatch
from dfkd.inversion.recipe import InversionRecipe
from dfkd.inversion.start import start_images
from dfkd.models.input_spec import InputSpec


def dream_batch(
    gradient: ObjectiveGradient,
    batch: PlannedBatch,
    spec: InputSpec,
    on_check: OnCheck | None = None,
    earlier: Dreams | None = None,
    checkpoint: BatchCheckpoint | None = None,
) -> tuple[Dreams, list[dict[str, float]]]:
    """Invert the objective's teacher into the images of `batch`, on the teacher's device.

    `earlier` are dreams of the same teacher, which are needed where `recipe.start` is `dreams`. `checkpoint` keeps the
    batch on its way.

    Returns:
        The dreams, in CPU memory, with what the teacher sees in them; and the history of their inversion.

    Raises:
        InversionError: the loss was not finite, or the images leave the range of their storage.
    """
    teacher, recipe = gradient.objective.teacher, gradient.objective.recipe
    device = next(teacher.parameters()).device
    generator = torch.Generator().manual_seed(batch.seed)
    with gradient.objective.recorded():
        start = start_images(recipe, batch.labels, spec, batch.seed, generator, teacher, earlier).to(device)
    labels = batch.labels.to(device)
    try:
        valid = _valid_range(recipe, spec, device)
        result = optimise(start, labels, gradient, generator, valid, on_check, checkpoint)
    except InversionError as error:
        raise InversionError(f"Batch {batch.number}: {error} It was not stored.") from error
    return _labelled(gradient, result.images.half(), labels), result.history


def _valid_range(recipe: InversionRecipe, spec: InputSpec, device: torch.device) -> tuple[Tensor, Tensor] | None:
    if not recipe.clip:
        return None
    limit = recipe.clip_limit
    lowest, highest = (torch.tensor(-limit), torch.tensor(limit)) if limit else spec.valid_range()
    return lowest.to(device), highest.to(device)


def _labelled(gradient: ObjectiveGradient, images: Tensor, labels: Tensor) -> Dreams:
    if not images.isfinite().all():
        raise InversionError(
            "The images left the range of their float16 storage. Set inversion.clip=true or raise "
            "inversion.l2_weight. The batch was not stored."
        )
    objective = gradient.objective
    with torch.no_grad(), objective.recorded():
        probabilities = torch.cat([objective.teacher(part.float()) for part in images.split(64)]).float().softmax(dim=1)
    predictions = probabilities.argmax(dim=1)
    if objective.recipe.label_loss == "entropy":
        labels = predictions
    confidence = probabilities.gather(1, labels[:, None]).squeeze(1)
    return Dreams(images.cpu(), labels.cpu(), predictions.cpu(), confidence.cpu())
