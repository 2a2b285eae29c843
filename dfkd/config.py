"""From Hydra's configuration to plain objects: the schema, the configuration's hash, and the one `instantiate`.

Everything below the entry point takes plain typed arguments; this module is where a configuration ends.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.errors import ConfigError, DfkdError
from dfkd.incremental import IncrementalRecipe
from dfkd.inversion.recipe import InversionRecipe
from dfkd.streaming import StreamingRecipe
from dfkd.training.fit import TrainerOptions
from dfkd.training.teacher import TeacherRecipe

SMALL = 64  # pixels, below which images are small

# What says where to run and what to show, but not what comes out; of the trainer, its precision does.
NOT_HASHED = ("hydra", "run_dir", "store", "stage", "logger", "trainer")


@dataclass
class InputNode:
    """See `dfkd.models.InputSpec`."""

    image_shape: list[int] = MISSING
    num_classes: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING


@dataclass
class TeacherNode:
    """The teacher: `weights` (a file, or `torchvision:NAME`), or where they are null, the `training` that makes it."""

    weights: str | None = MISSING
    training: TeacherRecipe = field(default_factory=TeacherRecipe)


@dataclass
class JudgeNode:
    """See `dfkd.evaluation.judging.Judge`; without a `model` of its own the judge is built as the teacher is."""

    model: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    extractor: str | None = None


@dataclass
class Schema:
    """Every key that a configuration may have. Nodes of type dict are checked against their `_target_`'s signature."""

    name: str = MISSING
    task: str = "recovery"
    seed: int = 0
    stage: str = "evaluate"
    run_dir: str | None = None
    store: str = MISSING
    input: InputNode = field(default_factory=InputNode)
    model: dict[str, Any] = MISSING
    student: dict[str, Any] = field(default_factory=dict)
    teacher: TeacherNode = field(default_factory=TeacherNode)
    data: dict[str, Any] = MISSING
    new_data: dict[str, Any] = MISSING
    incremental: IncrementalRecipe = field(default_factory=IncrementalRecipe)
    pruning: dict[str, Any] = MISSING
    rounds: int = 1
    controls: list[str] | None = None
    inversion: InversionRecipe = field(default_factory=InversionRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    streaming: StreamingRecipe = field(default_factory=StreamingRecipe)
    judge: JudgeNode = field(default_factory=JudgeNode)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    logger: dict[str, Any] = MISSING


def register() -> None:
    """Make the schema and the resolvers known to Hydra and OmegaConf."""
    schema = OmegaConf.structured(Schema)
    recipes = [schema.teacher.training, schema.inversion, schema.distillation, schema.streaming, schema.incremental]
    for recipe in (*recipes, schema.trainer):
        OmegaConf.set_readonly(recipe, False)  # frozen as objects, but still to be composed
    ConfigStore.instance().store(name="schema", node=schema)
    OmegaConf.register_new_resolver("dfkd.run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("dfkd.sweep_dir", _sweep_dir, replace=True)
    OmegaConf.register_new_resolver("dfkd.small_images", _small_images, replace=True)
    OmegaConf.register_new_resolver("dfkd.hash", lambda *, _root_: config_hash(_root_), replace=True)


def config_hash(cfg: DictConfig) -> str:
    """Eight hex digits that tell apart configurations that give different results."""
    content = {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key in sorted(set(cfg) - set(NOT_HASHED))
        for node in [OmegaConf.select(cfg, str(key))]
    } | {"precision": cfg.trainer.precision}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _small_images(*, _root_: DictConfig) -> bool:
    """Whether a network made for ImageNet's size should not shrink the images of this run at once."""
    return max(_root_.input.image_shape[1:]) < SMALL


def _sweep_dir(*, _root_: DictConfig) -> str:
    return _root_.run_dir or f"runs/{_root_.name}"


def _run_dir(*, _root_: DictConfig) -> str:
    return _root_.run_dir or f"runs/{_root_.name}/{config_hash(_root_)}"


def require_complete(cfg: DictConfig) -> None:
    """Raise `ConfigError` naming every option that still has no value."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"These options have no value yet: {', '.join(missing)}. Give them on the command line (KEY=VALUE) or in "
            "the experiment file."
        )


def plain(node: Any) -> Any:
    """A configuration node as plain lists and dicts, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)


def typed(node: DictConfig) -> Any:
    """A structured node as the dataclass that checks its values."""
    return OmegaConf.to_object(node)


def target_of(group: str, node: DictConfig) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable that `node._target_` names, and the other keys as its arguments.

    Raises:
        ConfigError: there is no such callable, or a key is not one of its arguments.
    """
    arguments = plain(node)
    name = arguments.pop("_target_", None)
    if not name:
        raise ConfigError(f"{group}._target_ must name a class or function, for instance my_package.MyNetwork.")
    try:
        target = get_object(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{group}._target_={name} could not be imported: {error}. Give its full dotted path; modules are searched "
            "in the current folder and the installed packages."
        ) from error
    if not callable(target):
        raise ConfigError(f"{group}._target_={name} must be a class or function, got {type(target).__name__}.")
    _check_arguments(group, target, arguments)
    return target, arguments


def _check_arguments(group: str, target: Callable[..., Any], arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in arguments:
        if key not in parameters:
            close = difflib.get_close_matches(key, parameters, n=1)
            hint = f" Did you mean {group}.{close[0]}?" if close else ""
            allowed = ", ".join(parameters) or "none"
            raise ConfigError(f"{group}.{key} is not an option of {target.__name__}; there are: {allowed}.{hint}")


def instantiate(group: str, node: DictConfig, *positional: Any, **named: Any) -> Any:
    """Call what `node._target_` names with the node's other keys, after `positional` and beside `named` arguments.

    Raises:
        ConfigError: the call's arguments do not fit, or the target refuses their values.
    """
    target, arguments = target_of(group, node)
    try:
        return target(*positional, **named, **arguments)
    except DfkdError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{group}: {target.__name__} cannot be made from {arguments}: {error}") from error
