"""From a composed configuration to an experiment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dfkd import config
from dfkd.errors import ConfigError, DataError, listing, require
from dfkd.incremental import IncrementalRecipe
from dfkd.models.input_spec import InputSpec
from dfkd.models.probe import Network
from dfkd.pruning.method import PruningMethod
from dfkd.real_data import RealImages
from dfkd.stages.networks import Weights
from dfkd.store import Store
from dfkd.tasks import TASKS, Plan
from dfkd.tasks.experiment import Experiment, Teacher, Verifier
from dfkd.tasks.task import Task, check_images, stages_up_to

NO_DATA = "dfkd.real_data.no_data"  # of `data=none`
SMALL_RUN = 2**26  # bytes of the networks, checkpoints and pictures of a small run


def make_experiment(cfg: DictConfig) -> Experiment:
    """The experiment that a composed configuration describes.

    Raises:
        DfkdError: a value cannot work.
    """
    config.require_known(cfg)
    config.require_complete(cfg)
    require(cfg.task in TASKS, "task", cfg.task, f"one of {tuple(TASKS)}")
    task = TASKS[cfg.task]
    require(cfg.stage in task.parts, "stage", cfg.stage, f"one of {task.parts} with task={cfg.task}")
    controls = task.controls if cfg.controls is None else tuple(cfg.controls)
    require(set(controls) <= set(task.controls), "controls", list(controls), f"a list of {task.controls}, or []")
    node = config.plain(cfg.input)
    spec = InputSpec(tuple(node["image_shape"]), node["num_classes"], tuple(node["mean"]), tuple(node["std"]))
    if cfg.student and "student" in task.ignored:
        raise ConfigError(
            f"task={task.name} has the teacher's architecture for its student: leave out model@student, or set "
            "task=transfer."
        )
    require(cfg.rounds >= 1, "rounds", cfg.rounds, "1 or more")
    incremental = config.typed(cfg.incremental)
    prune, arguments = config.target_of("pruning", cfg.pruning)
    return Experiment(
        name=cfg.name,
        task=cfg.task,
        seed=cfg.seed,
        spec=spec,
        network=_network("model", cfg.model, spec),
        student=_network("student", cfg.student, spec) if cfg.student else _network("model", cfg.model, spec),
        teacher=_teacher(cfg),
        pruning=PruningMethod(partial(prune, **arguments), config.plain(cfg.pruning)),
        inversion=config.typed(cfg.inversion).fitted(spec.image_shape),
        distillation=config.typed(cfg.distillation),
        quantization=quantization if (quantization := config.typed(cfg.quantization)).weight_bits else None,
        streaming=config.typed(cfg.streaming),
        rounds=cfg.rounds,
        controls=controls,
        incremental=incremental,
        data=images_of("data", cfg.data, spec),
        new_data=_new_data(cfg, spec, incremental),
        verifier=_verifier(cfg, spec),
        options=config.typed(cfg.trainer),
        choices=_choices(),
    )


def with_options(cfg: DictConfig, options: Mapping[str, Any]) -> DictConfig:
    """A configuration with other values of some options, by their full name."""
    chosen = OmegaConf.from_dotlist([f"{option}={value}" for option, value in options.items()])
    return cast(DictConfig, OmegaConf.merge(cfg, chosen))


def checked_experiment(cfg: DictConfig, run_dir: Path | None) -> tuple[Experiment, Plan]:
    """The experiment and its stages, once nothing is found that would stop them later.

    Args:
        cfg: the composed configuration.
        run_dir: where the run's files go; None: there will be none.

    Raises:
        DfkdError: something would.
    """
    experiment = make_experiment(cfg)
    task, products = TASKS[experiment.task], Store(Path(cfg.store))
    refuse_ignored(task, cfg)
    task.check(experiment, experiment.check())
    plan = task.plan(experiment)
    check_images(plan, cfg.stage)
    _check_store(products, plan, cfg.stage, experiment)
    if run_dir is not None:
        _check_space("run_dir", run_dir, SMALL_RUN)
    products.tell_of_older()
    return experiment, plan


def _check_store(store: Store, plan: Plan, last: str, e: Experiment) -> None:
    """Raise `ConfigError` where the store has no room for what it lacks; one that has all may be read-only, or full."""
    channels, height, width = e.spec.image_shape
    images = e.inversion.num_images + e.inversion.num_held_out
    try:
        store.check_writable()
        _check_space("store", store.root, images * channels * height * width * 2 + SMALL_RUN)  # float16 dreams
    except ConfigError as error:
        stages = stages_up_to(plan, last)
        missing = [stage.name for stage in stages if store.find(stage.kind, stage.determined_by) is None]
        if missing:
            raise ConfigError(f"{error} Of what this run needs, it has no {listing(missing)}.") from error


def _check_space(option: str, directory: Path, needed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ConfigError(
            f"{option} must have {needed / 2**20:.0f} MiB free, got {free / 2**20:.0f} MiB in {directory}. "
            f"Make room, choose another folder with {option}=..., or lower inversion.num_images."
        )


def _network(group: str, node: DictConfig, spec: InputSpec) -> Network:
    return Network(partial(config.instantiate, group, node), spec.image_shape)


def _teacher(cfg: DictConfig) -> Teacher:
    recipe, training = config.plain(cfg.model), config.typed(cfg.teacher.training)
    weights, start = cfg.teacher.weights, training.start
    return Teacher(
        weights=None if weights is None else Weights(weights, recipe),
        training=training,
        start=None if start is None else Weights(start, recipe, "teacher.training.start"),
    )


def _verifier(cfg: DictConfig, spec: InputSpec) -> Verifier:
    node, weights = cfg.verifier.model or cfg.model, cfg.verifier.weights
    return Verifier(
        network=_network("verifier.model", node, spec),
        weights=None if weights is None else Weights(weights, config.plain(node), "verifier.weights"),
        extractor=cfg.verifier.extractor,
    )


def images_of(group: str, node: DictConfig, spec: InputSpec) -> RealImages | None:
    """The real images of a config group; None where it is `none` (`ConfigError` where they are something else)."""
    images = config.instantiate(group, node, spec)
    if images is not None and not isinstance(images, RealImages):
        raise ConfigError(
            f"{group}._target_ must give dfkd.real_data.RealImages, or None, but {node._target_} gave a "
            f"{type(images).__name__}. Return RealImages(name, opener)."
        )
    return images


def _new_data(cfg: DictConfig, spec: InputSpec, incremental: IncrementalRecipe) -> tuple[RealImages, ...]:
    count, steps = incremental.new_classes, incremental.steps
    if not count or cfg.task != "class_incremental" or cfg.new_data.get("_target_") == NO_DATA:
        return ()
    nodes = [cfg.new_data]
    if steps > 1:
        only = config.plain(cfg.new_data).get("only")
        allowed = f"a list of {steps * count} different classes, incremental.new_classes for each of incremental.steps"
        listed = isinstance(only, list) and len(set(map(str, only))) == len(only) == steps * count
        require(listed, "new_data.only", only, allowed)
        nodes = [
            OmegaConf.merge(cfg.new_data, {"only": only[first : first + count]})
            for first in range(0, steps * count, count)
        ]
    try:
        images = [images_of("new_data", node, replace(spec, num_classes=count)) for node in nodes]
    except DataError as error:
        raise DataError(
            f"new_data: {error} (For new classes incremental.new_classes={count} is what counts.)"
        ) from error
    return tuple(each for each in images if each is not None)


def _choices() -> dict[str, str]:
    """The chosen file of every config group, by group."""
    if not HydraConfig.initialized():
        return {}
    return {str(group): str(choice) for group, choice in HydraConfig.get().runtime.choices.items()
            if not str(group).startswith("hydra")}  # fmt: skip


def refuse_ignored(task: Task, cfg: DictConfig) -> None:
    """Raise `ConfigError` where the command line sets an option that does nothing in this task."""
    if not HydraConfig.initialized():
        return
    ignored = list(task.ignored)
    if cfg.teacher.weights is not None:
        ignored.append("teacher.training")
    for override in HydraConfig.get().overrides.task:
        option = override.lstrip("+~").split("=", 1)[0]
        if any(option == name or option.startswith(f"{name}.") for name in ignored):
            why = "a teacher whose weights are given" if option.startswith("teacher.") else f"task={task.name}"
            raise ConfigError(f"{option} does nothing with {why}: leave it out, or it would promise what is not done.")
