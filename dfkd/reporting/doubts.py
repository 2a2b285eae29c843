"""What a result should make its reader doubt, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfkd.reporting.percent import percent
from dfkd.reporting.students import CONTROLS, NETWORKS, chosen_of, network_scores

FEW_SEEN = 0.5  # of the dreams as their label
BELOW = 0.005  # of accuracy, that a student must be below what it should beat: less may be chance
FEW_AGREE = 0.5  # of the teacher's predictions once it normalises by the dreams' own statistics


def doubts(result: dict[str, Any]) -> list[str]:
    """Sentences about dreams that are none, and about a student that is no better than what it is compared with."""
    found = doubts_of_dreams(result["dreams"])
    if "choice" in result:
        found += [*_of_choice(result), *_of_controls(result)]
    return found


def doubts_of_dreams(dreams: Mapping[str, Any]) -> list[str]:
    """Those about the dreams: the teacher does not see what they are called, or their statistics are not its own."""
    found = []
    seen = dreams["teacher_accuracy"]
    if seen is not None and seen < FEW_SEEN:
        found.append(
            f"The teacher sees {percent(seen)} of the dreams as their label. Raise inversion.restarts, "
            "inversion.iterations or inversion.label_weight."
        )
    agreement = dreams["quality"]["without_real_images"]["statistics_agreement"]
    if agreement is not None and agreement < FEW_AGREE:
        found.append(
            "The dreams' statistics are not those that the teacher learned from: it predicts the same on "
            f"{percent(agreement)} of them when it normalises by theirs. Raise inversion.iterations or "
            "inversion.feature_weight, or see whether input.mean and input.std are the teacher's."
        )
    return found


def _of_choice(result: dict[str, Any]) -> list[str]:
    chosen = chosen_of(result)
    if chosen == "distilled":
        return []
    return [
        "Distillation left the student farther from its teacher, on pictures that it did not learn from, than "
        f"{'re-estimated batch norm alone' if chosen == 'batchnorm' else 'pruning alone'}, which is the result "
        "therefore. Raise distillation.updates and inversion.num_images, or lower distillation.learning_rate."
    ]


def _of_controls(result: dict[str, Any]) -> list[str]:
    kind, values = network_scores(result)
    student = values["recovered" if "recovered" in result else "student"]
    if student is None or kind == "agreement":  # on dreams, who learned from dreams is ahead
        return []
    better = [name for name in ("pruned", *CONTROLS) if name != "real" and (values[name] or 0.0) - student > BELOW]
    return [
        f"The student ({percent(student)}) is below what it should beat: {NETWORKS[name]} ({percent(values[name])})."
        for name in better
    ]
