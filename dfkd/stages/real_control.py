"""The real-data control: the same learning on real training images, the ceiling of what dreams could give."""

from __future__ import annotations

from dfkd.real_data.datamodule import RealDataModule, random_subset
from dfkd.stages.learning import LearningFromControl, learn
from dfkd.stages.stage import Inputs, Notes
from dfkd.training.fit import Workplace


def learn_from_real_images(recipe: LearningFromControl, inputs: Inputs, workplace: Workplace) -> Notes:
    """Teach `student` on some of the real `images`."""
    images = random_subset(inputs["images"].open(), recipe.num_images, recipe.seed)
    data = RealDataModule(images, recipe.stream(workplace))
    return learn(recipe, inputs, workplace, lambda *_: data)[1]
