"""What a finished run was, by its own configuration, and what its student knows."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dfkd import config
from dfkd.errors import ConfigError, DataError
from dfkd.experiment_config import NO_DATA, make_experiment
from dfkd.models.input_spec import InputSpec
from dfkd.real_data import Purpose
from dfkd.reporting.run_directory import CONFIG
from dfkd.reporting.run_files import STUDENT
from dfkd.stages.images import Images, ImagesInARow
from dfkd.tasks.class_incremental import Step
from dfkd.tasks.experiment import Experiment

log = logging.getLogger("dfkd")


def finished_run(run: Path) -> Experiment:
    """What a finished run was asked to do; without data where its real images are no longer there.

    Raises:
        ConfigError: `run` holds no finished run.
    """
    for needed in (STUDENT, CONFIG):
        if not (run / needed).is_file():
            raise ConfigError(f"{run} must be the folder of a finished run, but it has no {needed}.")
    cfg = config.read(run / CONFIG)
    try:
        return make_experiment(cfg)
    except DataError as error:
        log.warning("The run's real images are left out: %s", error)
        cfg.data = cfg.new_data = {"_target_": NO_DATA}
        return make_experiment(cfg)


def student_classes(e: Experiment) -> tuple[InputSpec, list[str] | None]:
    """The input and all classes of a run's student, those it learned anew among them, and their names if known."""
    new = e.incremental.steps * e.incremental.new_classes if e.task == "class_incremental" else 0
    spec = replace(e.spec, num_classes=e.spec.num_classes + new)
    names: list[str] = []
    for images in (e.data, *e.new_data):
        if images is None or images.class_names is None:
            return spec, None
        names += images.class_names
    return spec, names if len(names) == spec.num_classes else None


def student_tests(e: Experiment) -> Dataset[Any] | None:
    """The test images of all the student's classes; None where there are none."""
    if e.data is None or (e.task == "class_incremental" and len(e.new_data) < e.incremental.steps):
        return None
    tests: Images | ImagesInARow = e.images(Purpose.EVALUATION)
    if e.new_data:
        tests = Step(e, e.incremental.steps).images(Purpose.EVALUATION, 0, e.incremental.steps)
    return tests.open()
