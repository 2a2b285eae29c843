"""The command `dfkd`: Hydra at the door, the stages of a task behind it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from dfkd import config, plan, store_command
from dfkd.budget import WITHIN, options_within
from dfkd.costs import known_teacher
from dfkd.deployment import benchmark, export, use
from dfkd.errors import ArtifactError, ConfigError, DfkdError, did_you_mean
from dfkd.experiment_config import checked_experiment, make_experiment, with_options
from dfkd.files import write_json, write_text
from dfkd.help import full_help, overview
from dfkd.privacy import audit
from dfkd.reporting import report
from dfkd.reporting.reading import on_device
from dfkd.reporting.result import view
from dfkd.reporting.run_directory import (
    ARTIFACTS,
    BUDGET,
    COMMAND,
    CONFIG,
    NEXT,
    RESULT,
    abandon,
    is_untouched,
    occupied,
    publish,
    write_status,
)
from dfkd.reporting.run_files import log_numbers, log_run, write_run
from dfkd.reporting.so_far import tell
from dfkd.run_config import remember
from dfkd.stages import Runner
from dfkd.stopping import stoppable
from dfkd.store import Store, check_writable
from dfkd.tasks import TASKS, Experiment
from dfkd.tasks.task import Plan, parts_of, record, run_stages, settings_of, stages_up_to
from dfkd.training.launched import first_of_the_launched
from dfkd.training.metrics import Metrics

log = logging.getLogger("dfkd")
config.register()  # on import: the jobs of a sweep may run in processes that never come to `main`


def run(cfg: DictConfig, run_dir: Path) -> tuple[dict[str, Any] | None, Runner]:
    """One job: check everything, then run the stages up to `cfg.stage` and write what they found out into `run_dir`.

    Returns:
        The content of `result.json` (None where the run stops before its last part), and the runner with its products.
    """
    check_writable(run_dir, "run_dir")
    with occupied(run_dir):
        is_new = is_untouched(run_dir)
        write_status(run_dir, "running", stage=str(cfg.stage))
        metrics = Metrics()
        try:
            experiment, stages = checked_experiment(cfg, run_dir)
            if cfg.seconds is not None:
                cfg = _within_seconds(cfg, experiment, stages, run_dir)
                experiment, stages = checked_experiment(cfg, run_dir)
            metrics = _metrics(cfg, run_dir)
            result, runner = _run(cfg, experiment, stages, metrics, run_dir)
        except BaseException as raised:
            error = _with_remedy(raised)
            _log_failure(error)
            if is_new and isinstance(error, ConfigError) and not (run_dir / CONFIG).exists():
                abandon(run_dir)  # an option was mistyped
            else:
                write_status(run_dir, "failed", stage=str(cfg.stage), error=f"{type(error).__name__}: {error}")
            metrics.finish(failed=True)
            raise error from raised.__cause__
        metrics.finish()
        write_status(run_dir, "finished", stage=cfg.stage)
    return result, runner


def _run(
    cfg: DictConfig, experiment: Experiment, plan: Plan, metrics: Metrics, run_dir: Path
) -> tuple[dict[str, Any] | None, Runner]:
    task = TASKS[cfg.task]
    place = run_dir / NEXT if (run_dir / RESULT).exists() else run_dir  # not beside an earlier result, until it ends
    for directory in {run_dir / NEXT, place}:
        write_text(directory / CONFIG, OmegaConf.to_yaml(cfg))
        remember(directory / CONFIG)
        write_text(directory / COMMAND, _command(run_dir))
        write_json(directory / ARTIFACTS, {stage.name: stage.identity() for stage in stages_up_to(plan, cfg.stage)})
    torch.manual_seed(experiment.seed)
    runner = Runner(Store(Path(cfg.store)), experiment.options, metrics)
    parts = parts_of(plan)
    run_stages(plan, runner, cfg.stage, lambda part: tell(part, runner.products, parts, experiment.spec, place))
    result = None
    if cfg.stage == task.parts[-1]:
        whatever_seed = make_experiment(with_options(cfg, {"seed": 0}))
        setting = settings_of(task, task.plan(whatever_seed))
        result = write_run(record(task, experiment, plan, runner, setting), run_dir / NEXT)
        log_run(result, run_dir / NEXT, metrics)
        publish(run_dir)
        _print_table(result)
        log.info("%s", view(result).summary(result))
        for warning in result["warnings"]:
            log.warning("%s", warning)
        if cfg.benchmark:
            log.info("%s", benchmark.verdict(benchmark.benchmark_run(run_dir, Path(cfg.store))))
            log_numbers(on_device(run_dir, result), metrics)
    log.info("Files of this run: %s", run_dir)
    return result, runner


def _command(run_dir: Path) -> str:
    """The command line that makes this run again in its directory, be it a job of a sweep."""
    overrides = HydraConfig.get().overrides.task
    given = cast(list[str], OmegaConf.to_container(overrides, resolve=False))  # what they refer to may be a secret
    options = [option for option in given if not option.startswith("run_dir=")]
    return shlex.join(["dfkd", *options, config.as_override("run_dir", str(run_dir))]) + "\n"


def _with_remedy(error: BaseException) -> BaseException:
    if not isinstance(error, ArtifactError):
        return error
    return ArtifactError(f"{error} Run the same command again: what is missing or damaged is made again.")


def _log_failure(error: BaseException) -> None:
    """Into the run's log; not to the screen, where `main` says it, once."""
    trace = None if isinstance(error, DfkdError) else (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, str(error), (), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _within_seconds(cfg: DictConfig, experiment: Experiment, plan: Plan, run_dir: Path) -> DictConfig:
    """The configuration with as many dreams and updates as there is time for.

    They are kept in the run's directory: the same run, when it continues, does what it began.
    """
    kept, of = run_dir / BUDGET, config.config_hash(cfg)
    options = _kept_options(kept, of)
    if options is None:
        teacher = known_teacher(experiment, plan, Store(Path(cfg.store)))
        options = options_within(experiment, cfg.seconds, teacher)
        write_json(kept, {"configuration": of, "options": options})
    return with_options(cfg, options)


def _kept_options(path: Path, configuration: str) -> dict[str, int] | None:
    """The options of this configuration in the file; None where it holds others, or anything but those two numbers."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        options = known["options"]
        sound = set(options) == set(WITHIN) and all(type(value) is int and value > 0 for value in options.values())
        return options if sound and known["configuration"] == configuration else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _metrics(cfg: DictConfig, run_dir: Path) -> Metrics:
    if not cfg.logger:
        return Metrics()
    if "TensorBoard" in str(cfg.logger.get("_target_")) and not find_spec("tensorboard"):
        raise ConfigError("logger=tensorboard needs the package tensorboard: pip install 'dfkd[tensorboard]'")
    logger = config.instantiate("logger", cfg.logger, save_dir=str(run_dir))
    logger.log_hyperparams(config.shown(cfg))
    return Metrics([logger])


def _print_table(result: dict[str, Any]) -> None:
    columns, rows = view(result).table(result)
    shown = Table(title=f"{result['experiment']}, seed {result['seed']}")
    for column in columns:
        shown.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        shown.add_row(*row, style=None if row[0].startswith(("teacher", "pruned", "control")) else "bold")
    Console(width=None if sys.stdout.isatty() else 100).print(shown)


FAILURES: list[tuple[Path, Exception]] = []  # of the jobs of this process: Hydra would print all their options


@hydra.main(version_base="1.3", config_path="pkg://dfkd.conf", config_name="config")
def _hydra_main(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    try:
        with stoppable(lambda name: write_status(run_dir, "stopped", stage=str(cfg.stage), signal=name)):
            result, _ = run(cfg, run_dir)
    except Exception as error:
        if hydra_config.mode is RunMode.MULTIRUN and not hydra_config.launcher["_target_"].endswith(".BasicLauncher"):
            raise  # another launcher's job is another process, whose failures nobody would ask for
        FAILURES.append((run_dir, error))
        return None
    if hydra_config.mode is RunMode.MULTIRUN and result is not None:
        found: float | None = view(result).objective(result)
        return found
    return None


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "report": report.main,
    "plan": plan.main,
    "export": export.main,
    "benchmark": benchmark.main,
    "audit": audit.main,
    "predict": use.predict,
    "evaluate": use.evaluate,
    "store": store_command.main,
}


def main() -> None:
    """Entry point of the console script `dfkd`: what it can do, one of `COMMANDS`, or a run by Hydra.

    A user's own modules are found in the current folder, after all that is installed: a file of another's in it, such
    as `onnx.py`, is not taken for a package.
    """
    sys.path.append(str(Path.cwd()))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here as they are
    try:
        if sys.argv[1:] in ([], ["-h"], ["--help"], ["help"]):
            print(full_help() if sys.argv[1:] else overview(), end="")
        elif sys.argv[1] in COMMANDS:
            COMMANDS[sys.argv[1]](sys.argv[2:])
        else:
            _refuse_word(sys.argv[1])
            config.refuse_renamed(sys.argv[1:])
            with first_of_the_launched() as first:
                if first:
                    _hydra_main()
                    _raise_failures()
    except DfkdError as error:
        sys.exit(f"dfkd: error: {error}")
    except (HydraException, OmegaConfBaseException) as error:  # before OSError: Hydra's own for a missing file is one
        sys.exit(f"dfkd: error: {_reasons(error)}")
    except OSError as error:
        sys.exit(
            f"dfkd: error: {error}. Check that run_dir and store are folders that can be written to, with room. What "
            "was finished is kept: the same command then continues."
        )


def _refuse_word(first: str) -> None:
    """Raise `ConfigError` where what a command line begins with is neither a command nor an option."""
    if "=" not in first and not first.startswith(("-", "~")):
        hint = did_you_mean(first, COMMANDS, "dfkd ") or "There are: " + ", ".join(COMMANDS)
        raise ConfigError(f"{first} is no command of dfkd, and no option KEY=VALUE. {hint}")


def _raise_failures() -> None:
    for run_dir, error in FAILURES[:-1]:
        print(f"dfkd: error: {run_dir}: {error}", file=sys.stderr)
    if FAILURES:
        raise FAILURES[-1][1]


def _reasons(error: BaseException) -> str:
    lines = [str(error).strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        if str(error).strip() not in lines[-1]:
            lines.append(str(error).strip())
    message = config.with_close_name("\n".join(lines))
    return config.with_new_names(config.with_quoting(message, sys.argv[1:]))
