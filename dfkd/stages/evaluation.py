"""What is said of a run's networks and dreams. Test images are opened here, by whoever asks for accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from dfkd.evaluation.quality import compare_with_real, dream_quality
from dfkd.evaluation.scores import score
from dfkd.models.cost import multiply_adds, parameters
from dfkd.models.input_spec import InputSpec
from dfkd.pruning.sparsity import nonzero_weights, sparsity
from dfkd.real_data.class_order import doubt
from dfkd.stages.dreams import all_dreams, held_out_set
from dfkd.stages.networks import build, load
from dfkd.stages.new_classes import Shifted
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.training.fit import Workplace


@dataclass(frozen=True, kw_only=True)
class Scoring(Recipe):
    """Which networks are scored.

    Attributes:
        spec: the teacher's input and classes.
        students: names of the inputs that are products of `student_network`.
        pruned: whether they are pruned copies of the teacher, so that what was cut out of them counts as zero.
        new_classes: that the students know beside the teacher's.
    """

    spec: InputSpec
    students: tuple[str, ...]
    pruned: bool = False
    new_classes: int = 0


@dataclass(frozen=True, kw_only=True)
class Quality(Recipe):
    """How dreams are looked at.

    Attributes:
        spec: the teacher's input and classes.
        extractor: whose features tell dreams from real images, see `dfkd.evaluation.verifier`; None: nobody's.
    """

    spec: InputSpec
    extractor: str | None = None


def score_students(recipe: Scoring, inputs: Inputs, workplace: Workplace) -> Notes:
    """Accuracy of `teacher` and students on the test `images`, agreement on held-out `dreams`, and what they cost.

    `recovered` is the student that was the `choice`, where there was one.
    """
    networks = _networks(recipe, inputs)
    tests = {"accuracy": inputs["images"].open() if "images" in inputs else None}
    spec, dreams = recipe.spec, held_out_set(inputs["dreams"])
    warnings: list[str] = []

    def look(name: str, logits: Tensor, labels: Tensor) -> None:
        found = doubt(logits, labels, inputs["images"].data.class_names) if name == "teacher" else None
        warnings.extend([] if found is None else [found])

    scores = score(networks, dreams, tests, spec.num_classes, workplace.options, look)
    for name, network in networks.items():
        gone = 1 - nonzero_weights(network) / nonzero_weights(networks["teacher"]) if recipe.pruned else None
        scores[name] |= {
            "sparsity": sparsity(network) if gone is None else gone,
            "parameters": parameters(network),
            "multiply_adds": multiply_adds(network, spec.image_shape),
        }
    if "choice" in inputs:
        scores["recovered"] = scores[inputs["choice"].notes["chosen"]]
    return {"scores": scores, "warnings": warnings}


def score_classes(recipe: Scoring, inputs: Inputs, workplace: Workplace) -> Notes:
    """Accuracy of `teacher` and students on test images of `old`, of `new`, and of all classes, among all classes."""
    spec = recipe.spec
    old = inputs["old"].open() if "old" in inputs else None
    new = Shifted(inputs["new"].open(), spec.num_classes)
    tests: dict[str, Dataset | None] = {"old": old, "new": new, "combined": old and ConcatDataset([old, new])}
    classes = spec.num_classes + recipe.new_classes
    held_out = held_out_set(inputs["dreams"])
    return {"scores": score(_networks(recipe, inputs), held_out, tests, classes, workplace.options)}


def _networks(recipe: Scoring, inputs: Inputs) -> dict[str, nn.Module]:
    teacher = load(inputs["teacher_network"], inputs["teacher"])
    return {"teacher": teacher} | {name: load(inputs["student_network"], inputs[name]) for name in recipe.students}


def assess_dreams(recipe: Quality, inputs: Inputs, workplace: Workplace) -> Notes:
    """What `teacher` and the verifier see in `dreams`; by an extractor's features, how near they are to `images`."""
    dreams, teacher = all_dreams(inputs["dreams"]), load(inputs["teacher_network"], inputs["teacher"])
    verifier = None
    if "verifier_weights" in inputs:
        verifier = build(inputs["verifier_network"])
        inputs["verifier_weights"].load(verifier)
    device = workplace.options.torch_device()
    notes: Notes = {"without_real_images": dream_quality(dreams, teacher, verifier, recipe.spec, device)}
    if recipe.extractor is not None:
        network = {"teacher": teacher, "verifier": verifier, "inception": None}[recipe.extractor]
        found = compare_with_real(
            dreams, inputs["images"].open(), network, recipe.spec, device, workplace.options.num_workers
        )
        notes["with_real_images"] = {"extractor": recipe.extractor, **found}
    return notes
