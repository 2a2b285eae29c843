"""Which student is the result: the one that was distilled, or one of those that it began as."""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.evaluation.criterion import distances, nearest, unseen_pictures
from dfkd.models.input_spec import InputSpec
from dfkd.stages.networks import load, save
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.training.fit import Workplace


@dataclass(frozen=True, kw_only=True)
class Choice(Recipe):
    """How a student is chosen.

    Attributes:
        spec: the teacher's input and classes.
        candidates: names of the inputs that are products of `student_network`.
        criterion: what tells how near they are, see `dfkd.evaluation.criterion`.
    """

    spec: InputSpec
    candidates: tuple[str, ...]
    criterion: str = "total variation on procedural pictures"


def choose(recipe: Choice, inputs: Inputs, workplace: Workplace) -> Notes:
    """Keep the candidate that is nearest to `teacher` on pictures that none of them learnt from.

    So a recovery never ends below what it started from, as far as can be told without real images.
    """
    teacher = load(inputs["teacher_network"], inputs["teacher"])
    networks = {name: load(inputs["student_network"], inputs[name]) for name in recipe.candidates}
    images = unseen_pictures(recipe.spec.image_shape, *recipe.spec.valid_range(), recipe.seed)
    found = distances(networks, teacher, images, workplace.options.torch_device())
    chosen = nearest(found)
    save(networks[chosen], workplace.directory)
    return {"chosen": chosen, "criterion": found}
