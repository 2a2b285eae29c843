"""What determines a set of dreams, apart from the teacher and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dfkd.errors import require
from dfkd.inversion.losses import NORMS, REDUCTIONS
from dfkd.procedural import FAMILIES
from dfkd.training.optimizer import SCHEDULES

LABEL_LOSSES = ("cross_entropy", "entropy")
FEATURE_FORMS = ("norm", "divergence")
BATCH, LEAST_BATCH = 256, 32  # images
STARTS = ("noise", "procedural", "dreams")


@dataclass(frozen=True)
class InversionRecipe:
    """Settings of an inversion: L(x') = label + a_f R_feature + a_tv TV + a_l2 L2 + a_c R_compete (DI, PPR).

    Attributes:
        num_images: dreams to train the student on.
        num_held_out: further dreams, in batches of their own, on which it is compared with its teacher. 0: none.
        batch_size: images optimised together; their joint statistics are matched to the teacher's. 0: 256, and of
            images above 64 x 64 as many as have no more pixels together, in powers of two, but 32 at least.
        start: what the images are at first: `noise` (DI), `procedural` pictures, or earlier `dreams` of the teacher.
        start_families: families of procedural pictures (`dfkd.procedural`), in turn.
        start_candidates: procedural pictures to choose from, per image: each goes to the label that the teacher sees
            most in it, as far as balanced labels allow. 1: no choice.
        iterations: Adam steps per batch, on the full image.
        half_resolution_iterations: steps before those, on the image average-pooled by 2 and with half the jitter; each
            of the two stages has the whole schedule.
        restarts: how often at most the full image's steps are gone through again, from where they ended and with twice
            the label weight each time, while the teacher sees fewer than `label_share` of a batch as their label.
        label_share: share of a batch, from which on there is no restart.
        learning_rate: Adam's step, in units of the normalised input, at its highest.
        schedule: of the learning rate: `constant`, `cosine` down to zero at the last iteration, or `step`.
        warmup_iterations: iterations over which the learning rate rises linearly.
        beta1: Adam's decay of the gradient's mean.
        beta2: Adam's decay of the gradient's square.
        label_loss: `cross_entropy` to balanced target labels, or `entropy`, which needs no labels (PPR).
        label_weight: weight of the label loss.
        feature_weight: a_f, weight of R_feature.
        feature_form: `norm` of the statistics' differences (DI), whose size depends on the network, or their
            `divergence`, which has no unit: about the same weights fit any network.
        feature_history: batches of the same bank, the last before each, whose statistics count with its own: for
            batches that are too small to match the teacher's alone. Above 0, batches are made one after the other.
        first_layer_weight: w_1, multiplier of the batch-norm layer that a forward comes to first, within R_feature.
        layer_weights: w_l of every batch-norm layer, in the order in which the network holds them; empty: all 1.
        tv_l2_weight: weight of TV_l2.
        tv_l1_weight: weight of TV_l1.
        tv_l1_reduction: `mean` of the differences (DI), or their `sum` (PPR).
        l2_weight: weight of the image norm.
        tv_l2_norm: `batch` for norms over the whole batch (published form), `image` for the mean of per-image norms.
        l2_norm: the same of the image norm: `batch` as published for CIFAR, `image` as published for ImageNet.
        competition_weight: a_c, weight of R_compete; above 0 it needs a student to compete with.
        competition_temperature: softmax temperature within R_compete.
        jitter: largest circular shift in pixels, new at every iteration; None: a sixteenth of the image's shorter side,
            or 2 where that is more (DI: 2 of 32 pixels, 30 of 224).
        flip: mirror the batch at random; only for data whose labels survive it.
        clip: keep images in the range that valid pixels have after normalisation.
        clip_limit: where it is above 0, `clip` keeps images within plus and minus this value instead.
    """

    num_images: int = 1024
    num_held_out: int = 128
    batch_size: int = 0
    start: str = "procedural"
    start_families: list[str] = field(default_factory=lambda: ["leaves"])
    start_candidates: int = 2
    iterations: int = 10
    half_resolution_iterations: int = 0
    restarts: int = 8
    label_share: float = 0.95
    learning_rate: float = 0.1
    schedule: str = "cosine"
    warmup_iterations: int = 0
    beta1: float = 0.5
    beta2: float = 0.9
    label_loss: str = "cross_entropy"
    label_weight: float = 0.3
    feature_weight: float = 300.0
    feature_form: str = "divergence"
    feature_history: int = 0
    first_layer_weight: float = 1.0
    layer_weights: list[float] = field(default_factory=list)
    tv_l2_weight: float = 0.0
    tv_l1_weight: float = 0.0
    tv_l1_reduction: str = "mean"
    l2_weight: float = 0.0
    tv_l2_norm: str = "batch"
    l2_norm: str = "batch"
    competition_weight: float = 0.0
    competition_temperature: float = 3.0
    jitter: int | None = None
    flip: bool = False
    clip: bool = True
    clip_limit: float = 0.0

    def __post_init__(self) -> None:
        def at_least(option: str, least: float) -> None:
            require(getattr(self, option) >= least, f"inversion.{option}", getattr(self, option), f"{least} or more")

        for option in ("num_images", "iterations", "start_candidates"):
            at_least(option, 1)
        for option in (
            "num_held_out",
            "batch_size",
            "feature_history",
            "warmup_iterations",
            "label_weight",
            "feature_weight",
        ):
            at_least(option, 0)
        for option in ("first_layer_weight", "tv_l2_weight", "tv_l1_weight", "l2_weight", "competition_weight"):
            at_least(option, 0)
        for option in ("half_resolution_iterations", "restarts", "clip_limit"):
            at_least(option, 0)
        require(0 < self.label_share <= 1, "inversion.label_share", self.label_share, "in (0, 1]")
        require(self.jitter is None or self.jitter >= 0, "inversion.jitter", self.jitter, "0 or more, or null")
        for option in ("learning_rate", "competition_temperature"):
            require(getattr(self, option) > 0, f"inversion.{option}", getattr(self, option), "above 0")
        for option in ("beta1", "beta2"):
            require(0 <= getattr(self, option) < 1, f"inversion.{option}", getattr(self, option), "in [0, 1)")
        require(self.schedule in SCHEDULES, "inversion.schedule", self.schedule, f"one of {SCHEDULES}")
        require(self.label_loss in LABEL_LOSSES, "inversion.label_loss", self.label_loss, f"one of {LABEL_LOSSES}")
        require(
            self.feature_form in FEATURE_FORMS, "inversion.feature_form", self.feature_form, f"one of {FEATURE_FORMS}"
        )
        require(self.start in STARTS, "inversion.start", self.start, f"one of {STARTS}")
        families = list(self.start_families)
        known = len(families) > 0 and set(families) <= FAMILIES.keys()
        require(known, "inversion.start_families", families, f"one or more of {tuple(FAMILIES)}")
        for option in ("tv_l2_norm", "l2_norm"):
            require(getattr(self, option) in NORMS, f"inversion.{option}", getattr(self, option), f"one of {NORMS}")
        allowed = f"one of {REDUCTIONS}"
        require(self.tv_l1_reduction in REDUCTIONS, "inversion.tv_l1_reduction", self.tv_l1_reduction, allowed)
        weights = list(self.layer_weights)
        require(all(weight >= 0 for weight in weights), "inversion.layer_weights", weights, "0 or more, each")

    @property
    def total_iterations(self) -> int:
        """Steps per batch over both resolutions, without restarts."""
        return self.half_resolution_iterations + self.iterations

    def fitted(self, image_shape: tuple[int, int, int]) -> InversionRecipe:
        """The same, with a `batch_size` for images of a shape (C, H, W)."""
        _, height, width = image_shape
        as_many = (BATCH * 64 * 64 // (height * width)).bit_length() - 1
        return replace(self, batch_size=self.batch_size or max(LEAST_BATCH, min(BATCH, 1 << max(0, as_many))))

    def jitter_at(self, height: int, width: int) -> int:
        """`jitter` for images of a size."""
        return max(2, min(height, width) // 16) if self.jitter is None else self.jitter

    @property
    def most_restarts(self) -> int:
        """How often a batch may be gone through again; never without labels to be seen."""
        return self.restarts if self.label_loss == "cross_entropy" and self.label_weight else 0

    @property
    def most_iterations(self) -> int:
        """Steps per batch if it is restarted as often as may be."""
        return self.total_iterations + self.most_restarts * self.iterations

    def weights_of(self, layers: Sequence[str], first: str | None = None) -> dict[str, float]:
        """w_l by layer; `first` is the one to have `first_layer_weight`, None: the first of `layers`.

        Raises:
            ConfigError: `layer_weights` is not empty and does not have one for each.
        """
        weights = list(self.layer_weights) or [1.0] * len(layers)
        expected = f"empty, or one weight for each of the teacher's {len(layers)} batch-norm layers"
        require(len(weights) == len(layers), "inversion.layer_weights", f"{len(weights)} weights", expected)
        return {
            layer: weight * (self.first_layer_weight if layer == (first or layers[0]) else 1.0)
            for layer, weight in zip(layers, weights, strict=True)
        }
