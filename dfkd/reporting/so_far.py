"""What a run knows while it goes on, for who waits for it or lets it end early."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd.files import write_json
from dfkd.models.input_spec import InputSpec
from dfkd.reporting.curves import write_curves
from dfkd.reporting.doubts import doubts_of_dreams
from dfkd.reporting.figures import dream_grid, save_figure
from dfkd.reporting.percent import percent
from dfkd.reporting.result import timing
from dfkd.reporting.run_directory import PICTURE, SO_FAR
from dfkd.stages.dreams import all_dreams
from dfkd.store import Product

log = logging.getLogger("dfkd")


def so_far(products: Mapping[str, Product], parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What is known of teacher, dreams and the choice of a student, under the names that `result.json` has for it."""
    found: dict[str, Any] = {}
    if "teacher_scores" in products:
        found["teacher"] = {"accuracy": products["teacher_scores"].notes["accuracy"]}
    if "dream_quality" in products:
        dreams, quality = products["dream"].notes, products["dream_quality"].notes
        found["dreams"] = {name: dreams[name] for name in ("iterations", "teacher_accuracy")} | {"quality": quality}
    if "choose" in products:
        found["choice"] = products["choose"].notes
    warnings = products["teacher_scores"].notes["warnings"] if "teacher_scores" in products else []
    found["warnings"] = [*warnings, *(doubts_of_dreams(found["dreams"]) if "dreams" in found else [])]
    return found | {"timing": timing(parts, products)}


def tell(
    part: str, products: Mapping[str, Product], parts: Mapping[str, Sequence[str]], spec: InputSpec, directory: Path
) -> None:
    """Write what is known after a part into `directory`, with curves and `dreams.png`, and log what it adds."""
    known = so_far(products, parts)
    if part == "teacher" and "teacher" in known:
        log.info("The teacher is right on %s of the test images.", percent(known["teacher"]["accuracy"]))
        _warn(known["warnings"])
    elif part == "dream":
        dreams, marks = known["dreams"], known["dreams"]["quality"]["without_real_images"]
        log.info(
            "The teacher sees %s of the dreams as their label, and the same in %s of them by their own statistics.",
            percent(dreams["teacher_accuracy"]), percent(marks["statistics_agreement"]),
        )  # fmt: skip
        _warn(doubts_of_dreams(dreams))
        save_figure(dream_grid(all_dreams(products["dream"]), spec), directory / PICTURE)
    write_curves(products, directory)
    write_json(directory / SO_FAR, {"after": part, **known})


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)
