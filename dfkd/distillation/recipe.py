"""What determines a recovery, apart from teacher, student, images and seed."""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.errors import require
from dfkd.training.optimizer import OptimizerRecipe

BATCH_NORM_MODES = ("live", "aligned", "frozen")


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe(OptimizerRecipe):
    """Settings of a recovery: reconstruction, batch-norm re-estimation, then distillation from the teacher.

    Attributes:
        gradual: share of the updates over which the student is pruned, in steps, as it learns (Zhu and Gupta 2017); it
            then starts as its teacher. 0: it is pruned at once, before; so it is where pruning changes its shape or has
            no amount to rise, where it is reconstructed, in several rounds, and where the student is given.
        updates: as in `OptimizerRecipe`; 0 leaves it with what comes before the distillation.
        batch_norm_rate: as in `OptimizerRecipe`. Where pruning left little of a channel, its scale has to become
            small; at the rate of the weights AdamW's steps take a thousand updates for that.
        reconstruct: first solve every pruned layer against the teacher's output (`dfkd.distillation.reconstruct`).
        reestimate_batch_norm: before the first step, set the student's batch-norm statistics to those of the images,
            or with `batch_norm=aligned` to those that they tell of.
        batch_norm: in training, `aligned` normalises by the batch to the mean and variance that the teacher's layer of
            the same name gives it, so that what dreams lack of real images does not get into the running statistics
            (`dfkd.distillation.batch_norm.aligned_batch_norm`); `live` normalises by the batch alone and learns its
            statistics; `frozen` keeps and uses the running statistics.
        temperature: softmax temperature of the logits' loss.
        logits_weight: weight of t^2 KL(teacher || student).
        label_weight: weight of the cross-entropy with the teacher's most likely class.
        feature_weight: weight of the mean `feature_error` over the batch-norm layers' outputs.
        mixup: share of the images that are blended with another one, for teacher and student alike.
        cutmix: share of the images that get a box of another one, after `mixup`, for teacher and student alike.
        weight_averaging: decay of an exponential moving average of the weights, which then are the student's, with
            batch-norm statistics of their own but where these are frozen; 0: the last weights are.
        patience: checks on held-out dreams, of about 20 in a recovery, in a row without a lower KL(teacher || student)
            after which the recovery stops; the student is then that of the lowest. None: all updates, and the last
            student. Checks count once the student is pruned in full.
    """

    gradual: float = 0.5
    updates: int = 1000
    optimizer: str = "adamw"
    learning_rate: float = 0.001
    warmup_updates: int = 20
    batch_norm_rate: float | None = 10.0
    reconstruct: bool = False
    reestimate_batch_norm: bool = True
    batch_norm: str = "aligned"
    temperature: float = 3.0
    logits_weight: float = 1.0
    label_weight: float = 0.0
    feature_weight: float = 30.0
    mixup: float = 0.5
    cutmix: float = 0.0
    weight_averaging: float = 0.0
    patience: int | None = None

    group = "distillation"
    least_updates = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "distillation.temperature", self.temperature, "above 0")
        for option in ("logits_weight", "label_weight", "feature_weight"):
            require(getattr(self, option) >= 0, f"distillation.{option}", getattr(self, option), "0 or more")
        require(0 <= self.weight_averaging < 1, "distillation.weight_averaging", self.weight_averaging, "in [0, 1)")
        patience = self.patience
        require(patience is None or patience >= 1, "distillation.patience", patience, "null, or 1 or more")
        require(
            patience is None or not self.weight_averaging,
            "distillation.patience",
            patience,
            "null with distillation.weight_averaging: held-out dreams choose weights, not their average",
        )
        require(0 <= self.gradual < 1, "distillation.gradual", self.gradual, "in [0, 1)")
        for option in ("mixup", "cutmix"):
            require(0 <= getattr(self, option) <= 1, f"distillation.{option}", getattr(self, option), "in [0, 1]")
        require(
            self.batch_norm in BATCH_NORM_MODES,
            "distillation.batch_norm",
            self.batch_norm,
            f"one of {BATCH_NORM_MODES}",
        )

    @property
    def reestimates_average(self) -> bool:
        """Whether batch norm's statistics are re-estimated at the end, for weights that no update had."""
        return bool(self.weight_averaging and self.updates) and self.batch_norm != "frozen"
