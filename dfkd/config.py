"""From Hydra's configuration to plain objects: the schema, the configuration's hash, and the one `instantiate`.

Everything below the entry point takes plain typed arguments; this module is where a configuration ends.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.errors import ConfigError, DfkdError, did_you_mean
from dfkd.incremental import IncrementalRecipe
from dfkd.inversion.recipe import InversionRecipe
from dfkd.quantization import QuantizationRecipe
from dfkd.run_config import load_run_config, require_trusted
from dfkd.streaming import StreamingRecipe
from dfkd.training.fit import TrainerOptions
from dfkd.training.teacher import TeacherRecipe

SMALL = 64  # pixels, below which images are small

# What says where to run and what to show, but not what comes out; of the trainer, its precision does.
NOT_HASHED = ("hydra", "run_dir", "store", "stage", "logger", "trainer", "benchmark")

# Keys and choices that changed their names with version 0.2; the old ones are refused with the new until 0.3.
RENAMED = {
    "model@judge.model": "model@verifier.model",
    "judge": "verifier",
    "teacher=given": "teacher=pretrained",
    "verifier.extractor=judge": "verifier.extractor=verifier",
    "experiment=cifar10_resnet20": "experiment=image_folder_resnet20",
    "incremental.separate_heads=true": "incremental.losses=separate_heads",
    "incremental.separate_heads=false": "incremental.losses=deepinversion",
}

# Launchers and sweepers of Hydra's, by the extra that installs each.
EXTRAS = {
    "joblib": "hydra/launcher/joblib", "slurm": "hydra/launcher/submitit_slurm", "ray": "hydra/launcher/ray",
    "optuna": "hydra/sweeper/optuna",
}  # fmt: skip

# torchvision's networks that have a name of their own, and depths and widths of those for small images.
TORCHVISION_MODELS = (
    "densenet121", "mobilenet_v2", "resnet18", "resnet34", "resnet50", "shufflenet_v2_x1_0", "vgg11_bn", "vgg19_bn",
    "wide_resnet50_2",
)  # fmt: skip
CIFAR_RESNET_DEPTHS = (20, 32, 44, 56, 110)
WIDE_RESNETS = ((16, 1), (16, 2), (40, 1), (40, 2))


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
class VerifierNode:
    """See `dfkd.tasks.experiment.Verifier`; without a `model` of its own it is built as the teacher is."""

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
    quantization: QuantizationRecipe = field(default_factory=QuantizationRecipe)
    rounds: int = 1
    seconds: float | None = None
    controls: list[str] | None = None
    benchmark: bool = False
    inversion: InversionRecipe = field(default_factory=InversionRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    streaming: StreamingRecipe = field(default_factory=StreamingRecipe)
    verifier: VerifierNode = field(default_factory=VerifierNode)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    logger: dict[str, Any] = MISSING


def register() -> None:
    """Make the schema and the resolvers known to Hydra and OmegaConf."""
    ConfigStore.instance().store(name="schema", node=_schema())
    for name, node in named_models().items():
        ConfigStore.instance().store(group="model", name=name, node=node)
    OmegaConf.register_new_resolver("dfkd.run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("dfkd.sweep_dir", _sweep_dir, replace=True)
    OmegaConf.register_new_resolver("dfkd.small_images", _small_images, replace=True)
    OmegaConf.register_new_resolver("dfkd.hash", lambda *, _root_: config_hash(_root_), replace=True)
    OmegaConf.register_new_resolver("dfkd.job_hash", lambda *, _root_: config_hash(_root_, of_all=True), replace=True)


def _schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(Schema)
    recipes = [schema.teacher.training, schema.inversion, schema.distillation, schema.streaming, schema.incremental,
               schema.quantization]  # fmt: skip
    for recipe in (*recipes, schema.trainer):
        OmegaConf.set_readonly(recipe, False)  # frozen as objects, but still to be composed
    return schema


def read(path: Path) -> DictConfig:
    """The configuration that a run wrote into its directory, with the types that composing had given it.

    Raises:
        ConfigError: it is none, has options that this version does not know, or names code that is not trusted.
    """
    written = load_run_config(path)
    require_trusted(written, path)
    try:
        if OmegaConf.is_interpolation(written, "name"):  # of the experiment's file, which only Hydra knew
            written.name = path.resolve().parent.name
        return cast(DictConfig, OmegaConf.merge(_schema(), written))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"{path} must hold a run's configuration, but: {error}") from error


def named_models() -> dict[str, dict[str, Any]]:
    """The choices of the group `model` that differ in a name, a depth or a width alone: no file of their own."""
    io: dict[str, Any] = {"num_classes": "${input.num_classes}", "in_channels": "${input.image_shape.0}"}
    small = {"small_image_stem": "${dfkd.small_images:}"}
    nodes = {
        name: {"_target_": "dfkd.models.torchvision_model", "name": name, **io, **small} for name in TORCHVISION_MODELS
    }
    nodes |= {
        f"resnet{depth}": {"_target_": "dfkd.models.CifarResNet", "depth": depth, **io} for depth in CIFAR_RESNET_DEPTHS
    }
    nodes |= {
        f"wrn_{depth}_{width}": {"_target_": "dfkd.models.WideResNet", "depth": depth, "widen_factor": width, **io}
        for depth, width in WIDE_RESNETS
    }
    return nodes


def config_hash(cfg: DictConfig, of_all: bool = False) -> str:
    """Eight hex digits that tell apart configurations that give different results; or `of_all`, any two."""
    left_out = ("hydra", "run_dir") if of_all else NOT_HASHED
    content = {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key in sorted(set(cfg) - set(left_out))
        for node in [OmegaConf.select(cfg, str(key))]
    } | {"precision": cfg.trainer.precision}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def refuse_renamed(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` naming the new name of a key or choice that the command line gives by its old one."""
    for override in (override.lstrip("+~") for override in overrides):
        for old, new in RENAMED.items():
            follows = (",",) if "=" in old else ("=", ".")
            if override == old or override.startswith(tuple(old + sign for sign in follows)):
                raise ConfigError(f"{old} is called {new} now: {override.replace(old, new, 1)}")


def with_quoting(message: str, overrides: Sequence[str]) -> str:
    """A complaint of Hydra's about the syntax of an override, with the quoting that its parser and the shell take.

    Hydra reads `=`, `~`, commas, brackets and blanks in a value as syntax of its own; file names may have them.
    """
    for override in overrides:
        option, assigned, value = override.partition("=")
        if not assigned or option.startswith("-"):  # a command, a flag or a file
            continue
        try:
            OverridesParser.create().parse_override(override)
        except HydraException:
            bare = value.strip("'\"")
            return f"{message}\nIf {bare} is a name, quote it twice: '{option}=\"{bare}\"'"
    return message


def with_close_name(message: str) -> str:
    """A complaint of Hydra's that an override's key is not there, in few words and with the key that was meant."""
    found = re.search(r"Could not override '([\w.]+)'", message)
    parent, _, key = found[1].rpartition(".") if found else ("", "", "")
    node = OmegaConf.select(_schema(), parent) if parent else _schema()
    if found is None or not OmegaConf.is_config(node):
        return message
    hint = did_you_mean(key, map(str, node), f"{parent}." if parent else "") or "There are: " + ", ".join(node)
    return f"{found[1]} is not an option. {hint}"


def with_new_names(message: str) -> str:
    """An error of Hydra's that complains of an old name, for instance in a user's experiment file, with the new one.

    And of a launcher or sweeper that is not installed, with the extra that it is.
    """
    told = [f"{old} is called {new} now." for old, new in RENAMED.items() if "=" not in old and f"'{old}'" in message]
    told += [f"It is an extra: pip install 'dfkd[{extra}]'" for extra, name in EXTRAS.items() if f"'{name}'" in message]
    return "\n".join([message, *told])


def _small_images(*, _root_: DictConfig) -> bool:
    """Whether a network made for ImageNet's size should not shrink the images of this run at once."""
    return bool(max(_root_.input.image_shape[1:]) < SMALL)


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


def require_known(cfg: DictConfig) -> None:
    """Raise `ConfigError` naming a key that is no option: Hydra lets `+` add any, and nothing would read it."""

    def compare(node: DictConfig, schema: DictConfig, parent: str) -> None:
        known = set(map(str, schema))  # asked itself, the schema would not tell of keys without a value
        for key in map(str, node):
            if key not in known:
                said = [f"{parent}{key} is not an option.", did_you_mean(key, known, parent)]
                said.append(f"Arguments of a network of your own belong to it: +model.{key}=...")
                raise ConfigError(" ".join(filter(None, said)))
            if is_dataclass(OmegaConf.get_type(schema, key)):
                compare(node[key], schema[key], f"{parent}{key}.")

    compare(cfg, _schema(), "")


def as_override(option: str, value: str) -> str:
    """An override that gives an option a text, in quotes where Hydra would take some of it for syntax of its own."""
    bare = f"{option}={value}"
    try:
        if OverridesParser.create().parse_override(bare).value() == value:
            return bare
    except HydraException:
        pass
    quoted = value.replace('"', '\\"')
    return f'{option}="{quoted}"'


def plain(node: Any) -> Any:
    """A configuration node as plain lists and dicts, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)


def shown(cfg: DictConfig) -> Any:
    """A configuration as `plain`, but what comes from the environment stays a reference: it may be a secret."""

    def unresolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unresolved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [unresolved(item) for item in value]
        return value.replace("${", r"\${") if isinstance(value, str) and "oc.env" in value else value

    return plain(OmegaConf.create(unresolved(OmegaConf.to_container(cfg))))


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
            allowed = ", ".join(parameters) or "none"
            said = f"{group}.{key} is not an option of {target.__name__}; there are: {allowed}."
            raise ConfigError(f"{said} {did_you_mean(key, parameters, f'{group}.')}".rstrip())


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
    except Exception as error:  # a user's constructor may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{group}: {target.__name__} cannot be made from {arguments}: {reason}") from error
