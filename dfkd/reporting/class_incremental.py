"""The view of a run of class-incremental learning: what each network scores on old, on new, and on all classes."""

from __future__ import annotations

from typing import Any

from dfkd.evaluation import Marks
from dfkd.reporting.percent import percent
from dfkd.tasks import ClassIncremental
from dfkd.training.progress import duration

# Names of the table's rows, in order.
NETWORKS = {
    "teacher": "teacher, old classes alone",
    "fine_tuning": "control: fine-tuning on the new classes",
    "learning_without_forgetting": "control: learning without forgetting",
    "learning_without_forgetting_mc": "control: the same with one softmax (LwF.MC)",
    "learn": "new classes learned beside dreams",
    "joint": "control: joint training on real images",
}
COLUMNS = ["network", "old classes", "new classes", "all classes", "agreement"]
MARKS = ("old", "new", "combined", "agreement")


def result_of(pipeline: ClassIncremental, scores: dict[str, Marks], sizes: dict[str, int]) -> dict[str, Any]:
    """What `result.json` tells beside the facts that every task records.

    `scores` are accuracies in [0, 1] among all classes, on the test images of the old, the new and all classes;
    `agreement` is the share of held-out dreams of old classes that keep the teacher's answer.
    """
    e = pipeline.experiment
    return {
        "classes": {"old": e.spec.num_classes, "new": e.incremental.new_classes},
        "scores": {name: scores[name] for name in NETWORKS if name in scores},
        "bytes": sizes,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows as text."""
    scores = result["scores"].items()
    return COLUMNS, [(NETWORKS[name], *(percent(marks[mark]) for mark in MARKS)) for name, marks in scores]


def bars(result: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The mark that the networks can be told apart by, and its value by network."""
    known = all(marks["combined"] is not None for marks in result["scores"].values())
    mark = "combined" if known else "new"
    return "accuracy", {NETWORKS[name]: marks[mark] for name, marks in result["scores"].items()}


def summary(result: dict[str, Any]) -> str:
    """One line on what the run did and how long it took."""
    classes, dreams, timing = result["classes"], result["dreams"], result["timing"]
    return (
        f"{classes['new']} new classes beside {classes['old']} old ones, of which {dreams['count']} dreams of "
        f"{dreams['iterations']} iterations remind. Dreaming took {duration(timing['dream'])}, learning "
        f"{duration(timing['learn'])}, all stages {duration(timing['total'])} on {result['environment']['device']}."
    )


def objective(result: dict[str, Any]) -> float | None:
    """What a sweeper that searches may choose by: held-out dreams, never the test images."""
    return result["scores"]["learn"]["agreement"]
