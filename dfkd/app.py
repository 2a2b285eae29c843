"""The command `dfkd`: Hydra at the door, the pipeline behind it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from dfkd import config, export
from dfkd.errors import ConfigError, DataError, DfkdError, require
from dfkd.evaluation.judging import Judge
from dfkd.files import write_json, write_text
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.input_spec import InputSpec
from dfkd.pruning.method import PruningMethod
from dfkd.real_data import RealImages
from dfkd.reporting import report
from dfkd.reporting.result import view
from dfkd.reporting.run_directory import log_growth, log_run, write_run
from dfkd.store import Store, check_writable
from dfkd.tasks import TASKS, Experiment, Pipeline

log = logging.getLogger("dfkd")


def make_experiment(cfg: DictConfig) -> Experiment:
    """The experiment that a composed configuration describes.

    Raises:
        DfkdError: a value cannot work.
    """
    config.require_complete(cfg)
    require(cfg.task in TASKS, "task", cfg.task, f"one of {tuple(TASKS)}")
    task = TASKS[cfg.task]
    require(cfg.stage in task.stages, "stage", cfg.stage, f"one of {task.stages} with task={cfg.task}")
    controls = task.controls if cfg.controls is None else tuple(cfg.controls)
    require(set(controls) <= set(task.controls), "controls", list(controls), f"a list of {task.controls}, or []")
    node = config.plain(cfg.input)
    spec = InputSpec(tuple(node["image_shape"]), node["num_classes"], tuple(node["mean"]), tuple(node["std"]))
    require(cfg.rounds >= 1, "rounds", cfg.rounds, "1 or more")
    student = cfg.student or cfg.model
    incremental = config.typed(cfg.incremental)
    prune, arguments = config.target_of("pruning", cfg.pruning)
    return Experiment(
        name=cfg.name,
        task=cfg.task,
        seed=cfg.seed,
        spec=spec,
        build_model=partial(config.instantiate, "model", cfg.model),
        model_recipe=config.plain(cfg.model),
        build_student=partial(config.instantiate, "student", student),
        student_recipe=config.plain(student),
        weights=cfg.teacher.weights,
        training=config.typed(cfg.teacher.training),
        pruning=PruningMethod(partial(prune, **arguments), config.plain(cfg.pruning)),
        inversion=config.typed(cfg.inversion),
        distillation=config.typed(cfg.distillation),
        streaming=config.typed(cfg.streaming),
        rounds=cfg.rounds,
        controls=controls,
        incremental=incremental,
        data=config.instantiate("data", cfg.data, spec),
        judge=_judge(cfg),
        new_data=_new_data(cfg, spec, incremental.new_classes),
        options=config.typed(cfg.trainer),
        choices=_choices(),
    )


def _judge(cfg: DictConfig) -> Judge:
    node = cfg.judge.model or cfg.model
    build = partial(config.instantiate, "judge.model", node)
    return Judge(build, config.plain(node), cfg.judge.weights, cfg.judge.extractor)


def _new_data(cfg: DictConfig, spec: InputSpec, classes: int) -> RealImages | None:
    if not classes:
        return None
    try:
        return config.instantiate("new_data", cfg.new_data, replace(spec, num_classes=classes))
    except DataError as error:
        raise DataError(
            f"new_data: {error} (For new classes incremental.new_classes={classes} is what counts.)"
        ) from error


def _choices() -> dict[str, str]:
    """The chosen file of every config group, by group."""
    if not HydraConfig.initialized():
        return {}
    return {str(group): str(choice) for group, choice in HydraConfig.get().runtime.choices.items()
            if not str(group).startswith("hydra")}  # fmt: skip


def run(cfg: DictConfig, run_dir: Path) -> tuple[dict[str, Any] | None, Pipeline]:
    """One job: check everything, then run the stages up to `cfg.stage` and write what they leave into `run_dir`.

    Returns:
        The content of `result.json` (None where the run stops before `evaluate`), and the pipeline.
    """
    status = run_dir / "status.json"
    check_writable(run_dir, "run_dir")
    write_json(status, {"status": "running"})
    loggers: list[Logger] = []
    try:
        experiment = make_experiment(cfg)
        _check_space(experiment.inversion, experiment.spec, Path(cfg.store), run_dir)
        pipeline = TASKS[cfg.task](experiment, Store(Path(cfg.store)))
        pipeline.check()
        # From here on the directory is this run's: a result of an earlier one must not stand beside its configuration.
        (run_dir / "result.json").unlink(missing_ok=True)
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg))
        loggers = pipeline.loggers = _make_loggers(cfg, run_dir)
        pipeline.on_growth = partial(log_growth, loggers, experiment.spec)
        torch.manual_seed(experiment.seed)
        scores = pipeline.run(cfg.stage)
        result = None
        if scores is not None:
            result = write_run(pipeline, scores["scores"], run_dir)
            log_run(result, run_dir, loggers)
            _print_table(result)
            log.info("%s", view(result).summary(result))
        log.info("Files of this run: %s", run_dir)
    except BaseException as error:
        if isinstance(error, DfkdError):
            log.error("%s", error)
        else:
            log.exception("The run failed.")
        write_json(status, {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        _finish(loggers)
    write_json(status, {"status": "finished", "stage": cfg.stage})
    return result, pipeline


def _make_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    if not cfg.logger:
        return []
    logger = config.instantiate("logger", cfg.logger, save_dir=str(run_dir))
    logger.log_hyperparams(config.plain(cfg))
    return [logger]


def _finish(loggers: Sequence[Logger]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _check_space(recipe: InversionRecipe, spec: InputSpec, store: Path, run_dir: Path) -> None:
    channels, height, width = spec.image_shape
    # float16 dreams, and as much again for networks, checkpoints and pictures of a small run
    needed = {"store": (recipe.num_images + recipe.num_held_out) * channels * height * width * 2 + 2**26}
    needed["run_dir"] = 2**26
    for option, directory in (("store", store), ("run_dir", run_dir)):
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
        if free < needed[option]:
            raise ConfigError(
                f"{option} must have {needed[option] / 2**20:.0f} MiB free, got {free / 2**20:.0f} MiB in {directory}. "
                f"Make room, choose another folder with {option}=..., or lower inversion.num_images."
            )


def _print_table(result: dict[str, Any]) -> None:
    columns, rows = view(result).table(result)
    shown = Table(title=f"{result['experiment']}, seed {result['seed']}")
    for column in columns:
        shown.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        shown.add_row(*row, style=None if row[0].startswith(("teacher", "pruned", "control")) else "bold")
    Console(width=None if sys.stdout.isatty() else 100).print(shown)


@hydra.main(version_base="1.3", config_path="pkg://dfkd.conf", config_name="config")
def _hydra_main(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    result, _ = run(cfg, run_dir)
    if hydra_config.mode is RunMode.MULTIRUN and result is not None:
        return view(result).objective(result)
    return None


def main() -> None:
    """Entry point of the console script `dfkd`: `dfkd report DIR...`, `dfkd export RUN`, or a run by Hydra.

    A user's own modules are found in the current folder.
    """
    sys.path.insert(0, str(Path.cwd()))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here as they are
    config.register()
    try:
        if sys.argv[1:2] == ["report"]:
            report.main(sys.argv[2:])
        elif sys.argv[1:2] == ["export"]:
            export.main(sys.argv[2:])
        else:
            _hydra_main()
    except DfkdError as error:
        sys.exit(f"dfkd: error: {error}")
    except OSError as error:
        sys.exit(f"dfkd: error: {error}. Check that run_dir and store are folders that can be written to.")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"dfkd: error: {_reasons(error)}")


def _reasons(error: BaseException) -> str:
    lines = [str(error).strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        if str(error).strip() not in lines[-1]:
            lines.append(str(error).strip())
    return "\n".join(lines)
