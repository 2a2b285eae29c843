"""What is said of a run's networks and dreams. Test images are opened here, by whoever asks for accuracy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from dfkd.evaluation.quality import compare_with_real, dream_quality
from dfkd.evaluation.scores import accuracy, logits_of, predict, score
from dfkd.models.cost import multiply_adds, parameters
from dfkd.models.input_spec import InputSpec
from dfkd.pruning.sparsity import nonzero_weights, sparsity
from dfkd.quantization.layer import attached_bits
from dfkd.real_data.class_order import doubt
from dfkd.stages.dreams import all_dreams, held_out_set
from dfkd.stages.networks import build, load
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.training.fit import Workplace


@dataclass(frozen=True, kw_only=True)
class TeacherScoring(Recipe):
    """How the teacher is scored.

    Attributes:
        spec: its input and classes.
    """

    spec: InputSpec


@dataclass(frozen=True, kw_only=True)
class Scoring(Recipe):
    """Which networks are scored.

    Attributes:
        spec: the teacher's input and classes.
        students: names of the inputs that are products of `student_network`.
        pruned: whether they are pruned copies of the teacher, so that what was cut out of them counts as zero.
        tasks: numbers of the classes that were learned together, in order, where the students know more than the
            teacher's; the first are the teacher's.
    """

    spec: InputSpec
    students: tuple[str, ...]
    pruned: bool = False
    tasks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quality(Recipe):
    """How dreams are looked at.

    Attributes:
        spec: the teacher's input and classes.
    """

    spec: InputSpec


@dataclass(frozen=True, kw_only=True)
class Comparison(Recipe):
    """How dreams are compared with real images.

    Attributes:
        spec: the teacher's input and classes.
        extractor: whose features tell one from the other: `teacher`, `verifier` or `inception`.
    """

    spec: InputSpec
    extractor: str


def score_teacher(recipe: TeacherScoring, inputs: Inputs, workplace: Workplace) -> Notes:
    """Accuracy of `teacher` on the test `images`, and whether these seem to be numbered as its classes are."""
    teacher, images, options = load(inputs["network"], inputs["teacher"]), inputs["images"], workplace.options
    logits, labels = logits_of(teacher, images.open(), options.torch_device(), options.num_workers)
    doubtful = doubt(logits, labels, images.data.class_names, images.data.only)
    right = accuracy(logits.argmax(1), labels, recipe.spec.num_classes)
    return {"accuracy": right, "warnings": [] if doubtful is None else [doubtful]}


def score_students(recipe: Scoring, inputs: Inputs, workplace: Workplace) -> Notes:
    """Accuracy of the students on the test `images`, agreement on held-out `dreams`, and what they cost.

    The `teacher` stands beside them, with its accuracy from `teacher_scores`. `recovered` is the student that was the
    `choice`, where there was one.
    """
    teacher, students = _networks(recipe, inputs)
    tests = {"accuracy": inputs["images"].open() if "images" in inputs else None}
    spec, held_out = recipe.spec, held_out_set(inputs["dreams"])
    scores = score(students, teacher, held_out, tests, spec.num_classes, workplace.options)
    noted = inputs["teacher_scores"].notes if "teacher_scores" in inputs else {"accuracy": None}
    scores["teacher"] = {"accuracy": noted["accuracy"], "agreement": 1.0}
    for name, network in {"teacher": teacher, **students}.items():
        gone = 1 - nonzero_weights(network) / nonzero_weights(teacher) if recipe.pruned else None
        scores[name] |= {
            "sparsity": sparsity(network) if gone is None else gone,
            "parameters": parameters(network),
            "multiply_adds": multiply_adds(network, spec.image_shape),
        }
        bits = attached_bits(network).values()
        if bits:
            scores[name] |= {"weight_bits": min(weight for weight, _ in bits), "input_bits": min(i for _, i in bits)}
    if "choice" in inputs:
        scores["recovered"] = scores[inputs["choice"].notes["chosen"]]
    return {"scores": scores}


def score_classes(recipe: Scoring, inputs: Inputs, workplace: Workplace) -> Notes:
    """Accuracy of `teacher` and students among all classes, on test `images` of old, of new, and of all classes.

    `tasks` are the accuracies on the classes that were learned together, for each network a list. What needs images of
    old classes is None where there are none.
    """
    options, spec = workplace.options, recipe.spec
    device, images = options.torch_device(), inputs["images"].open()
    teacher, students = _networks(recipe, inputs)
    networks = {"teacher": teacher, **students}
    scores = score(networks, teacher, held_out_set(inputs["dreams"]), {}, spec.num_classes, options)
    tasks: dict[str, list[float | None]] = {}
    for name, network in networks.items():
        predictions, labels = predict(network, images, device, options.num_workers)

        def right(first: int, last: int, said: Tensor = predictions, labels: Tensor = labels) -> float | None:
            here = (first <= labels) & (labels < last)
            return accuracy(said[here], labels[here], sum(recipe.tasks)) if here.any() else None

        ends = list(itertools.accumulate(recipe.tasks))
        tasks[name] = [right(end - count, end) for end, count in zip(ends, recipe.tasks, strict=True)]
        old, new = tasks[name][0], right(ends[0], ends[-1])
        scores[name] |= {"old": old, "new": new, "combined": None if old is None else right(0, ends[-1])}
    return {"scores": scores, "tasks": tasks}


def _networks(recipe: Scoring, inputs: Inputs) -> tuple[nn.Module, dict[str, nn.Module]]:
    students = {name: load(inputs["student_network"], inputs[name]) for name in recipe.students}
    return load(inputs["teacher_network"], inputs["teacher"]), students


def assess_dreams(recipe: Quality, inputs: Inputs, workplace: Workplace) -> Notes:
    """What `teacher` and the verifier see in `dreams`."""
    dreams, device = all_dreams(inputs["dreams"]), workplace.options.torch_device()
    teacher = load(inputs["teacher_network"], inputs["teacher"])
    verifier = _verifier(inputs) if "verifier_weights" in inputs else None
    return {"without_real_images": dream_quality(dreams, teacher, verifier, recipe.spec, device)}


def compare_dreams(recipe: Comparison, inputs: Inputs, workplace: Workplace) -> Notes:
    """How near `dreams` are to the test `images`, by the extractor's features."""
    options = workplace.options
    network = None
    if recipe.extractor == "teacher":
        network = load(inputs["teacher_network"], inputs["teacher"])
    elif recipe.extractor == "verifier":
        network = _verifier(inputs)
    found = compare_with_real(
        all_dreams(inputs["dreams"]), inputs["images"].open(), network, recipe.spec, options.torch_device(),
        options.num_workers,
    )  # fmt: skip
    return {"with_real_images": {"extractor": recipe.extractor, **found}}


def _verifier(inputs: Inputs) -> nn.Module:
    verifier = build(inputs["verifier_network"])
    inputs["verifier_weights"].load(verifier)
    return verifier
