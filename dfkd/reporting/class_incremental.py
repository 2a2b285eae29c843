"""The view of a run of class-incremental learning: what each network scores on old, on new, and on all classes."""

from __future__ import annotations

from typing import Any

from dfkd.reporting.percent import percent
from dfkd.reporting.record import Record
from dfkd.reporting.students import all_stages
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
SCORES = ("old", "new", "combined", "agreement")


def result_of(record: Record, sizes: dict[str, int]) -> dict[str, Any]:
    """What `result.json` tells beside the facts that every task records.

    `scores` are accuracies in [0, 1] among all classes, on the test images of the old, the new and all classes;
    `agreement` is the share of held-out dreams of old classes on which a network predicts what the teacher does.
    """
    scores = {name: record.scores[name] for name in NETWORKS if name in record.scores}
    return {**record.facts, "scores": scores, "bytes": sizes}


def table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows as text."""
    held_out = result["dreams"]["held_out"]
    counts = dict.fromkeys(SCORES) | {"agreement": held_out}
    return COLUMNS, [
        (NETWORKS[name], *(percent(scores[kind], counts[kind]) for kind in SCORES))
        for name, scores in result["scores"].items()
    ]


def bars(result: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The score that the networks can be told apart by, and its value by network."""
    kind = _known_kind(result)
    return "accuracy", {NETWORKS[name]: scores[kind] for name, scores in result["scores"].items()}


def _known_kind(result: dict[str, Any]) -> str:
    known = all(scores["combined"] is not None for scores in result["scores"].values())
    return "combined" if known else "new"


def key_numbers(result: dict[str, Any]) -> dict[str, float]:
    """What a table of many runs shows of each: each network's score, as in `bars`, and the student's agreement."""
    kind = _known_kind(result)
    numbers = {f"{name}_{kind}": scores[kind] for name, scores in result["scores"].items()}
    agreement = objective(result)
    return numbers if agreement is None else numbers | {"agreement": agreement}


def summary(result: dict[str, Any]) -> str:
    """One line on what the run did and how long it took."""
    classes, dreams, timing = result["classes"], result["dreams"], result["timing"]
    return (
        f"{classes['new']} new classes beside {classes['old']} old ones, of which {dreams['count']} dreams of "
        f"{dreams['iterations']} iterations remind. Dreaming took {duration(timing['dream'])}, learning "
        f"{duration(timing['learn'])}, {all_stages(result)}."
    )


def objective(result: dict[str, Any]) -> float | None:
    """What a sweeper that searches may choose by: held-out dreams, never the test images."""
    agreement: float | None = result["scores"]["learn"]["agreement"]
    return agreement
