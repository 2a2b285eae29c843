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
OF_STEPS = ("average", "forgetting")  # columns that runs of several steps have beside


def result_of(record: Record, sizes: dict[str, int]) -> dict[str, Any]:
    """What `result.json` tells beside the facts that every task records.

    `scores` are accuracies in [0, 1] among all classes, on the test images of the old, the new and all classes;
    `agreement` is the share of held-out dreams of old classes on which a network predicts what the teacher does. Where
    classes were learned in several steps, these are of the last one; `scores_by_step` has those of all, and the scores
    what `over_steps` says.
    """
    scores = {name: record.scores[name] for name in NETWORKS if name in record.scores}
    steps = record.facts["steps"]
    if steps == 1:
        return {**record.facts, "scores": scores, "bytes": sizes}
    notes = [record.products[f"evaluate_{step}"].notes for step in range(1, steps)] + [
        record.products["evaluate"].notes
    ]
    rows = [{name: {**note["scores"][name], "tasks": note["tasks"][name]} for name in scores} for note in notes]
    first = scores["teacher"]["old"]
    over = {name: over_steps(first, [row[name] for row in rows]) for name in scores if name != "teacher"}
    with_steps = {name: {**scores[name], **over.get(name, dict.fromkeys(OF_STEPS))} for name in scores}
    return {**record.facts, "scores": with_steps, "scores_by_step": rows, "bytes": sizes}


def over_steps(first: float | None, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """What is said of a network over all steps; None where an accuracy is not known.

    `average`: the mean of the accuracies among all classes known, of the teacher and after every step (Rebuffi et al.
    2017). `forgetting`: of every task but the last, its best accuracy after an earlier step less its last one; the mean
    over these tasks (Chaudhry et al. 2018).

    Args:
        first: the teacher's accuracy, on the first task.
        rows: by step, `combined`, the accuracy on all classes known, and `tasks`, that on the classes of each task.
    """
    if first is None or any(row["combined"] is None for row in rows):
        return dict.fromkeys(OF_STEPS)
    by_step = [[first], *(row["tasks"] for row in rows)]
    before, last = by_step[:-1], by_step[-1]
    lost = [max(tasks[task] for tasks in before if task < len(tasks)) - last[task] for task in range(len(last) - 1)]
    average = (first + sum(row["combined"] for row in rows)) / (1 + len(rows))
    return {"average": round(average, 6), "forgetting": round(sum(lost) / len(lost), 6)}


def table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows as text."""
    held_out = result["dreams"]["held_out"]
    counts = dict.fromkeys(SCORES) | {"agreement": held_out}
    beside = OF_STEPS if "scores_by_step" in result else ()
    return [*COLUMNS, *beside], [
        (
            NETWORKS[name],
            *(percent(scores[kind], counts[kind]) for kind in SCORES),
            *("" if scores[kind] is None else percent(scores[kind]) for kind in beside),
        )
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
    in_steps = f" in {result['steps']} steps" if "scores_by_step" in result else ""
    return (
        f"{classes['new']} new classes{in_steps} beside {classes['old']} old ones, of which "
        f"{dreams['count']} dreams of {dreams['iterations']} iterations remind. Dreaming took "
        f"{duration(timing['dream'])}, learning {duration(timing['learn'])}, {all_stages(result)}."
    )


def objective(result: dict[str, Any]) -> float | None:
    """What a sweeper that searches may choose by: held-out dreams, never the test images."""
    agreement: float | None = result["scores"]["learn"]["agreement"]
    return agreement
