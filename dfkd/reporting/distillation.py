"""The view of a run in which a student learned from its teacher: recovery and transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfkd.evaluation import Marks
from dfkd.reporting.percent import percent
from dfkd.tasks import DistillationPipeline
from dfkd.training.progress import duration

# Names of the table's rows and the bars of recovery.png, in order.
NETWORKS = {
    "teacher": "teacher",
    "pruned": "pruned, untouched",
    "noise": "control: distilled on noise",
    "batchnorm": "control: batch-norm re-estimation on dreams",
    "recovered": "recovered on dreams",
    "student": "student taught on dreams",
    "real": "control: distilled on real images",
}


def result_of(pipeline: DistillationPipeline, scores: dict[str, Marks], sizes: dict[str, int]) -> dict[str, Any]:
    """What `result.json` tells beside the facts that every task records.

    `agreement` is the share of held-out dreams on which a network gives the teacher's answer. `recovery` is
    (recovered - pruned) / (teacher - pruned) in accuracy. The student is called `recovered` where it was pruned,
    `student` where it was fresh.
    """
    e = pipeline.experiment
    mark = {name: scores.get(name, {"accuracy": None, "agreement": None}) for name in NETWORKS}
    networks = [name for name in ("teacher", "pruned", pipeline.student) if name in pipeline.networks]
    costs = dict(zip(networks, pipeline.costs(*(pipeline.networks[name] for name in networks)), strict=True))
    controls = [name for name in ("batchnorm", "noise", "real") if name in pipeline.networks or "pruned" in networks]
    accuracy = {name: marks["accuracy"] for name, marks in mark.items()}
    return {
        "teacher": {
            "accuracy": accuracy["teacher"],
            "weights": Path(e.weights).name if e.weights else "trained here",
            **costs["teacher"],
        },
        **{name: {**mark[name], **costs[name]} for name in networks if name == "pruned"},
        pipeline.student: {**mark[pipeline.student], **costs[pipeline.student], "bytes": sizes},
        "controls": {name: accuracy[name] for name in controls},
        "controls_agreement": {name: mark[name]["agreement"] for name in controls},
        "recovery": recovery(accuracy["teacher"], accuracy["pruned"], accuracy["recovered"]),
        "streaming": _streaming(pipeline),
    }


def _streaming(pipeline: DistillationPipeline) -> dict[str, Any] | None:
    """What was dreamt while the student learned, and how long that took of its time; None if nothing was."""
    notes = pipeline.artifacts[pipeline.stages[-2]].notes
    rows = notes.get("stream")
    if not rows:
        return None
    images = pipeline.experiment.num_images - pipeline.experiment.inversion.num_images
    return {"batches": len(rows), "images": images, "last": rows[-1], "seconds": notes["seconds_dreaming"]}


def recovery(teacher: float | None, pruned: float | None, recovered: float | None) -> float | None:
    """(recovered - pruned) / (teacher - pruned); None where it is not known or nothing was lost."""
    if teacher is None or pruned is None or recovered is None or teacher == pruned:
        return None
    return (recovered - pruned) / (teacher - pruned)


def table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows as text; networks that were not made are left out."""
    rows: list[tuple[str, ...]] = []
    for name, label in NETWORKS.items():
        marks = _marks(result, name)
        if marks == (None, None) and name != "teacher":
            continue
        sparsity = 0.0 if name == "teacher" else student_of(result)["sparsity"]
        agreement = "" if name == "teacher" else percent(marks[1])
        rows.append((label, percent(sparsity), percent(marks[0]), agreement))
    return ["network", "sparsity", "accuracy", "agreement"], rows


def student_of(result: dict[str, Any]) -> dict[str, Any]:
    """The marks and cost of the network that a run is about."""
    return result["recovered"] if "recovered" in result else result["student"]


def network_scores(result: dict[str, Any]) -> tuple[str, dict[str, float | None]]:
    """The mark that the run can be judged by (`accuracy`, or without data `agreement`), and its value by network."""
    kind = "agreement" if result["teacher"]["accuracy"] is None else "accuracy"
    return kind, {name: _marks(result, name)[kind == "agreement"] for name in NETWORKS}


def bars(result: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """`network_scores` that are known, under the names for people."""
    kind, values = network_scores(result)
    return kind, {NETWORKS[name]: value for name, value in values.items() if value is not None}


def summary(result: dict[str, Any]) -> str:
    """One line on what the run did and how long it took."""
    dreams, timing = result["dreams"], result["timing"]
    line = f"{dreams['count']} dreams of {dreams['iterations']} iterations"
    if dreams["teacher_accuracy"] is not None:
        line += f", {percent(dreams['teacher_accuracy'])} of them seen as their label by the teacher"
    streamed = result.get("streaming")
    if streamed is not None:
        line += f", and {streamed['images']} made while the student learned"
    learning = ("recovery", timing["recover"]) if "recover" in timing else ("transfer", timing["transfer"])
    line += f". Dreaming took {duration(timing['dream'])}, {learning[0]} {duration(learning[1])}"
    if streamed is not None:
        line += f" ({duration(streamed['seconds'])} of it dreaming)"
    line += f", all stages {duration(timing['total'])} on {result['environment']['device']}."
    if result["recovery"] is not None:
        line += f" Recovered {percent(result['recovery'])} of what pruning lost."
    return line


def objective(result: dict[str, Any]) -> float | None:
    """What a sweeper that searches may choose by: held-out dreams, never the test images."""
    return student_of(result)["agreement"]


def _marks(result: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    if name == "teacher":
        return result["teacher"]["accuracy"], None
    if name in ("pruned", "recovered", "student"):
        marks = result.get(name, {})
        return marks.get("accuracy"), marks.get("agreement")
    return result["controls"].get(name), result["controls_agreement"].get(name)
