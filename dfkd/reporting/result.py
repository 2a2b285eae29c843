"""The result of a run as one JSON document, and what people are shown of it: by the view of its task."""

from __future__ import annotations

import platform
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch

from dfkd.evaluation import Marks
from dfkd.reporting import class_incremental, distillation
from dfkd.tasks import Pipeline

# By task, a module of `result_of`, what the task adds to the result; and, of a result, `table`, `bars`, `summary` and
# `objective`.
VIEWS = {"recovery": distillation, "transfer": distillation, "class_incremental": class_incremental}


def view(result: dict[str, Any]) -> ModuleType:
    """The view of a run's task."""
    return VIEWS[result.get("task", "recovery")]  # the oldest results name no task


def build_result(pipeline: Pipeline, scores: dict[str, Marks], sizes: dict[str, int]) -> dict[str, Any]:
    """The content of `result.json`. Accuracies and agreements are in [0, 1], None where they cannot be known.

    `sizes` are the bytes of the student's files. `timing` is seconds by stage, as measured when the stage's product was
    made; `reused` names the products that this run found in the store. What else there is depends on the task: see the
    `result_of` of its view.
    """
    e, artifacts = pipeline.experiment, pipeline.artifacts
    dreams = artifacts["dream"].notes
    stages = dict.fromkeys((*pipeline.stages[:-1], "controls", "evaluate"), 0.0)
    for name, artifact in artifacts.items():  # those of a stage's rounds are called `recover_1`, `noise_pruned_2`, ...
        stage = name.split("_")[0]
        stages[stage if stage in stages else "controls"] += artifact.seconds
    stages = {stage: round(seconds, 2) for stage, seconds in stages.items()}
    opened = [purpose for data in (e.data, e.new_data) if data is not None for purpose in data.opened]
    return {
        "experiment": e.name,
        "task": e.task,
        "seed": e.seed,
        "choices": e.choices,
        **VIEWS[e.task].result_of(pipeline, scores, sizes),
        "dreams": {
            "count": e.inversion.num_images,
            "held_out": e.inversion.num_held_out,
            "iterations": e.inversion.iterations,
            "teacher_accuracy": dreams["teacher_accuracy"],
            "judged": artifacts["evaluate_dreams"].notes,
        },
        "timing": stages | {"total": round(sum(stages.values()), 2)},
        "reused": sorted(name for name, artifact in artifacts.items() if artifact.reused),
        "artifacts": {name: f"{artifact.kind}/{artifact.key}" for name, artifact in sorted(artifacts.items())},
        "data": {
            "name": None if e.data is None else e.data.name,
            "new": None if e.new_data is None else e.new_data.name,
            "opened_for": list(dict.fromkeys(opened)),
        },
        "environment": environment(e.options.torch_device()),
    }


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
