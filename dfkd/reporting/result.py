"""The result of a run as one JSON document, and what people are shown of it: by the view of its task."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch

from dfkd.reporting import class_incremental, students
from dfkd.reporting.doubts import doubts
from dfkd.reporting.record import Record
from dfkd.store import Product

# By task, a module of `result_of`, what the task adds to the result; and, of a result, `table`, `bars`, `summary`,
# `key_numbers` and `objective`.
VIEWS = {"recovery": students, "transfer": students, "class_incremental": class_incremental}


def view(result: dict[str, Any]) -> ModuleType:
    """The view of a run's task."""
    return VIEWS[result.get("task", "recovery")]  # the oldest results name no task


def build_result(record: Record, sizes: dict[str, int]) -> dict[str, Any]:
    """The content of `result.json`. Accuracies and agreements are in [0, 1], None where they cannot be known.

    `sizes` are the bytes of the student's files. `timing` is seconds by part of the run, as measured when the products
    were made; `seconds_of_this_run` leaves out the stages that are `reused`, whose products this run found in the
    store. What else there is depends on the task: see the `result_of` of its view.
    """
    products = record.products
    result = {
        "experiment": record.experiment,
        "task": record.task,
        "seed": record.seed,
        "setting": record.settings["student"],
        "choices": dict(record.choices),
        **VIEWS[record.task].result_of(record, sizes),
        "dreams": {
            "count": len(record.dreams.training),
            "held_out": record.dreams.num_held_out,
            "iterations": record.iterations,
            "setting": record.settings["dreams"],
            "teacher_accuracy": products["dream"].notes["teacher_accuracy"],
            "quality": dict(record.quality),
        },
        "warnings": list(record.warnings),
        "timing": timing(record.parts, products),
        "seconds_of_this_run": round(sum(product.seconds for product in products.values() if not product.reused), 2),
        "reused": sorted(name for name, product in products.items() if product.reused),
        "artifacts": {name: f"{product.kind}/{product.key}" for name, product in sorted(products.items())},
        "data": dict(record.data),
        "environment": environment(record.device),
    }
    result["warnings"] += doubts(result)
    return result


def timing(parts: Mapping[str, Sequence[str]], products: Mapping[str, Product]) -> dict[str, float]:
    """Seconds by part of a run, as far as it has come, and in `total`."""
    made = {part: [products[name].seconds for name in names if name in products] for part, names in parts.items()}
    seconds = {part: round(sum(each), 2) for part, each in made.items() if each or not parts[part]}
    return seconds | {"total": round(sum(seconds.values()), 2)}


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, without names of machines or paths."""
    packages = ("dfkd", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }
