"""Training a teacher on real images: for demonstrations and studies; users bring their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import ConfigError, require
from dfkd.models.freezing import frozen
from dfkd.training.augmentation import augment, pasted_boxes
from dfkd.training.module import SeededTraining
from dfkd.training.optimizer import OptimizerRecipe
from dfkd.training.ranks import whole_batch_norm

GROWN = 0.75  # of the updates, after which images have their whole size
SIDE_STEP = 4  # pixels: each new size costs the choice of new kernels
STATISTICS_BATCHES = 50


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(OptimizerRecipe):
    """Settings of a supervised training.

    Attributes:
        label_smoothing: share of the target spread over all classes.
        cutmix: share of the images that get a box of another one, whose label then counts as much as the box covers
            (Yun et al. 2019); for trainings so long that a network knows its images by heart.
        progressive_size: share of their sides that images are shrunk to at first (progressive resizing; Tan and Le
            2021). It grows linearly, in steps of four pixels, to 1 after three quarters of the updates: the early ones,
            which learn what is coarse, cost a fraction. None: images are whole.
        weight_averaging: decay of an exponential moving average of the weights, which then are the teacher's, with
            batch-norm statistics of their own; None: it has the weights of the last update.
        start: weights to start from, a file or `torchvision:NAME`; the classifier starts anew where they have one for
            other classes. None: random weights.
    """

    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    cutmix: float = 0.0
    progressive_size: float | None = None
    weight_averaging: float | None = None
    start: str | None = None

    group = "teacher.training"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.label_smoothing < 1, "teacher.training.label_smoothing", self.label_smoothing, "in [0, 1)")
        require(0 <= self.cutmix <= 1, "teacher.training.cutmix", self.cutmix, "in [0, 1]")
        for option in ("progressive_size", "weight_averaging"):
            value = getattr(self, option)
            require(value is None or 0 < value < 1, f"teacher.training.{option}", value, "in (0, 1), or null")

    def side(self, whole: int, update: int) -> int:
        """Pixels of the side of images at an update, of a `whole` one."""
        grown = update / (GROWN * self.updates)
        if self.progressive_size is None or grown >= 1:
            return whole
        share = self.progressive_size + (1 - self.progressive_size) * grown
        return min(whole, SIDE_STEP * round(share * whole / SIDE_STEP) or SIDE_STEP)

    @property
    def statistics_batches(self) -> int | None:
        """Batches of images that batch norm's statistics are re-estimated on at the end; None: on none.

        The average of the statistics of many networks is not that of their average (Izmailov et al. 2018): with it a
        MobileNetV2 was right on 30 % of the test images, with those of whole images on 88.
        """
        return STATISTICS_BATCHES if self.weight_averaging else None

    def require_takes(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Raise `ConfigError` unless `network` takes the smallest images (C, H, W) of the training."""
        if self.progressive_size is None:
            return
        channels, *sides = image_shape
        smallest = [self.side(whole, 0) for whole in sides]
        try:
            with torch.no_grad(), frozen(network):
                network(torch.zeros(2, channels, *smallest))
        except RuntimeError as error:
            raise ConfigError(
                f"teacher.training.progressive_size must be larger for this network, got {self.progressive_size}: it "
                f"does not take images of {smallest[0]} x {smallest[1]} pixels ({error}). Set it to null."
            ) from error


class TeacherTraining(SeededTraining):
    """Minimises the cross-entropy of augmented images and their labels.

    With `cutmix`, (1 - a) CE(z, y) + a CE(z, y'), a the share of an image that a box of another, of label y', has.
    """

    recipe: TeacherRecipe

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        recipe = self.recipe
        images = augment(images, recipe.crop_padding, recipe.flip)
        boxes: list[Tensor] = []
        if recipe.cutmix:
            images, others, areas = pasted_boxes(images, recipe.cutmix)
            boxes = [self.ranks.share(labels[others]), self.ranks.share(areas)]
        images, labels = self.share(images), self.ranks.share(labels)
        sides = [recipe.side(whole, self.global_step) for whole in images.shape[2:]]
        if sides != list(images.shape[2:]):
            images = F.interpolate(images, sides, mode="bilinear", antialias=True)
        with whole_batch_norm(self.network, self.ranks):
            logits = self.network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing, reduction="none")
        if boxes:
            pasted, areas = boxes
            other = F.cross_entropy(logits, pasted, label_smoothing=recipe.label_smoothing, reduction="none")
            loss = torch.lerp(loss, other, areas)
        return {"total": loss.mean(), "accuracy": (logits.argmax(1) == labels).float().mean()}
