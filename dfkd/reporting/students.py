"""The view of a run in which a student learned from its teacher: recovery and transfer."""

from __future__ import annotations

from typing import Any

from dfkd.reporting.percent import percent
from dfkd.reporting.record import Record
from dfkd.training.progress import duration

# Names of the table's rows and the bars of recovery.png, in order.
NETWORKS = {
    "teacher": "teacher",
    "pruned": "pruned, untouched",
    "noise": "control: distilled on noise",
    "procedural": "control: distilled on procedural pictures",
    "batchnorm": "control: batch-norm re-estimation on dreams",
    "distilled": "distilled on dreams, not chosen",
    "recovered": "recovered on dreams",
    "student": "student taught on dreams",
    "real": "control: distilled on real images",
}
CHOSEN = {"pruned": "pruned, untouched", "batchnorm": "batch-norm re-estimation alone"}
CONTROLS = ("batchnorm", "noise", "procedural", "real")


def result_of(record: Record, sizes: dict[str, int]) -> dict[str, Any]:
    """What `result.json` tells beside the facts that every task records.

    `agreement` is the share of held-out dreams on which a network predicts what the teacher does. `recovery` is
    (recovered - pruned) / (teacher - pruned) in accuracy. The student is called `recovered` where it was pruned,
    `student` where it was fresh. `choice` tells which candidate the recovered student is (`pruned`, `batchnorm` or
    `distilled`) and the criterion of each, see `dfkd.evaluation.criterion`.
    """
    scores = record.scores
    student = "recovered" if "recovered" in scores else "student"
    controls = [name for name in CONTROLS if name != "batchnorm" or student == "recovered"]
    known = {name: scores.get(name, {"accuracy": None, "agreement": None}) for name in NETWORKS}
    teacher = {name: value for name, value in scores["teacher"].items() if name != "agreement"}
    return {
        "teacher": {**record.facts, **teacher},
        **{name: scores[name] for name in ("pruned", "distilled") if name in scores},
        student: {**scores[student], "bytes": sizes},
        "controls": {name: known[name]["accuracy"] for name in controls},
        "controls_agreement": {name: known[name]["agreement"] for name in controls},
        "recovery": recovery(*(known[name]["accuracy"] for name in ("teacher", "pruned", "recovered"))),
        "streaming": _streaming(record),
        "choice": dict(record.choice) or None,
    }


def _streaming(record: Record) -> dict[str, Any] | None:
    """What was dreamt while the student learned, and how long that took of its time; None if nothing was."""
    if not record.streamed:
        return None
    notes = next(product.notes for product in record.products.values() if product.notes.get("stream"))
    images = sum(map(len, record.streamed))
    return {
        "batches": len(record.streamed), "images": images, "last": notes["stream"][-1],
        "seconds": notes["seconds_dreaming"],
    }  # fmt: skip


def recovery(teacher: float | None, pruned: float | None, recovered: float | None) -> float | None:
    """(recovered - pruned) / (teacher - pruned); None where it is not known or nothing was lost."""
    if teacher is None or pruned is None or recovered is None or pruned >= teacher:
        return None
    return (recovered - pruned) / (teacher - pruned)


def table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows as text; networks that were not made are left out."""
    rows: list[tuple[str, ...]] = []
    chosen = chosen_of(result)
    for name, label in NETWORKS.items():
        scores = _scores(result, name)
        if (scores == (None, None) and name != "teacher") or (name == "distilled" and chosen == "distilled"):
            continue
        if name == "recovered" and chosen != "distilled":
            label = f"recovered: {CHOSEN[chosen]}"
        sparsity = 0.0 if name == "teacher" else student_of(result)["sparsity"]
        agreement = "" if name == "teacher" else percent(scores[1], result["dreams"]["held_out"])
        rows.append((label, percent(sparsity), percent(scores[0]), agreement))
    return ["network", "sparsity", "accuracy", "agreement"], rows


def chosen_of(result: dict[str, Any]) -> str:
    """Which candidate the recovered student is; in results of before there was a choice, the distilled one."""
    return str((result.get("choice") or {}).get("chosen", "distilled"))


def student_of(result: dict[str, Any]) -> dict[str, Any]:
    """The scores and cost of the network that a run is about."""
    student: dict[str, Any] = result["recovered"] if "recovered" in result else result["student"]
    return student


def network_scores(result: dict[str, Any]) -> tuple[str, dict[str, float | None]]:
    """The score that the run goes by (`accuracy`, or without data `agreement`), and its value by network."""
    kind = "agreement" if result["teacher"]["accuracy"] is None else "accuracy"
    return kind, {name: _scores(result, name)[kind == "agreement"] for name in NETWORKS}


def bars(result: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """`network_scores` that are known, under the names for people."""
    kind, values = network_scores(result)
    if chosen_of(result) == "distilled":
        values["distilled"] = None
    return kind, {NETWORKS[name]: value for name, value in values.items() if value is not None}


def key_numbers(result: dict[str, Any]) -> dict[str, float]:
    """What a table of many runs shows of each: the networks' scores, and the student's agreement, sparsity, size."""
    kind, scores = network_scores(result)
    student = student_of(result)
    numbers = {f"{name}_{kind}": score for name, score in scores.items()}
    numbers |= {"agreement": student["agreement"], "recovery": result["recovery"], "sparsity": student["sparsity"]}
    numbers |= {"packed_bytes": student["bytes"]["packed"], "weight_bits": student.get("weight_bits")}
    return {name: value for name, value in numbers.items() if value is not None}


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
    line += f", {all_stages(result)}."
    if result["recovery"] is not None:
        line += f" Recovered {percent(result['recovery'])} of what pruning lost."
    student = student_of(result)
    if "weight_bits" in student:
        line += f" Its weights have {student['weight_bits']} bits, its layers' inputs {student['input_bits']}."
    return line


def all_stages(result: dict[str, Any]) -> str:
    """How long all stages took, and how much of it this run, which may have found some in the store."""
    total = result["timing"]["total"]
    here = result.get("seconds_of_this_run", total)  # which the oldest results do not tell
    of_it = f" ({duration(here)} of it in this run, the rest was in the store)" if total - here >= 1 else ""
    return f"all stages {duration(total)} on {result['environment']['device']}{of_it}"


def objective(result: dict[str, Any]) -> float | None:
    """What a sweeper that searches may choose by: held-out dreams, never the test images."""
    agreement: float | None = student_of(result)["agreement"]
    return agreement


def _scores(result: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    if name == "teacher":
        return result["teacher"]["accuracy"], None
    if name in ("pruned", "distilled", "recovered", "student"):
        scores = result.get(name, {})
        return scores.get("accuracy"), scores.get("agreement")
    return result["controls"].get(name), result["controls_agreement"].get(name)
