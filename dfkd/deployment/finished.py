"""What a finished run was, by its own configuration."""

from __future__ import annotations

import logging
from pathlib import Path

from dfkd import config
from dfkd.errors import ConfigError, DataError
from dfkd.experiment_config import make_experiment
from dfkd.reporting.run_directory import CONFIG
from dfkd.reporting.run_files import STUDENT
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
        cfg.data = {"_target_": "dfkd.real_data.no_data"}
        return make_experiment(cfg)
