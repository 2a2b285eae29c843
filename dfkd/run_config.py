"""The `config.yaml` in a run's folder, read as what it may be: a file of somebody else's.

Nothing in it is run without a word. It may name the networks, data sets and prunings of dfkd and torchvision; code of
those packages that the user names in `DFKD_TRUST`. A file that this user's own run wrote, to the byte, may name any:
its digest is in the user's cache. And it may refer to its own options, but not to the
environment.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dfkd.errors import ConfigError
from dfkd.files import cache_folder, file_checksum

TRUST = "DFKD_TRUST"
LARGEST = 2**20  # bytes
DEEPEST = 32
OPENING = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken,
           yaml.FlowSequenceStartToken)  # fmt: skip
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
# A target is a public name of one of these: any attribute of a module of ours would do for `dfkd.app.os.system`.
OWN = ("dfkd.models", "dfkd.pruning", "dfkd.real_data", "torchvision.models", "lightning.pytorch.loggers")
REFERENCES = re.compile(
    r"\$\{[\w.@]+\}"  # to another option
    r"|\$\{dfkd\.\w+:\}|\$\{hydra:runtime\.choices\.experiment\}"
    r"|\$\{oc\.env:DFKD_STORE,artifacts\}"
)


def load_run_config(path: Path) -> DictConfig:
    """What a run wrote into its folder, as it stands there.

    Raises:
        ConfigError: it is no configuration, has YAML that none has (tags, anchors), or refers to the environment.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} must hold a run's configuration, but has more than {LARGEST:,} bytes.")
        text = path.read_text(encoding="utf-8")
        if not _is_plain(text):
            raise ConfigError(
                f"{path} must hold a run's configuration, which has no YAML tags, anchors or deep nesting."
            )
        written = OmegaConf.create(text)
        if not isinstance(written, DictConfig):
            raise ConfigError(f"{path} must hold a run's configuration, but is no mapping of options.")
    except (OSError, OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} must hold a run's configuration, but: {error}") from error
    known = _known(path).exists()
    for option, value in _leaves(OmegaConf.to_container(written)):
        if not known and isinstance(value, str) and "${" in REFERENCES.sub("", value):
            raise ConfigError(
                f"{path}: {option}={value} refers to something other than the run's own options, so it was not looked "
                "up. Put the value itself there if you trust the file."
            )
    return written


def _is_plain(text: str) -> bool:
    """Whether YAML has neither tags nor anchors, which build objects or gigabytes, nor nests without end."""
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST or isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            return False
    return True


def remember(path: Path) -> None:
    """Note that a configuration was written by a run of this user."""
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        known = _known(path)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()


def _known(path: Path) -> Path:
    return cache_folder() / "runs" / file_checksum(path)


def require_trusted(written: DictConfig, path: Path) -> None:
    """Raise `ConfigError` where a run's configuration names code that is not dfkd's, torchvision's or trusted.

    What this user's own run wrote, to the byte, is trusted.
    """
    if _known(path).exists():
        return
    trusted = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
    for option, value in _leaves(OmegaConf.to_container(written)):
        if "_target_" in option.split(".") and not (_is_own(value) or str(value).split(".")[0] in trusted):
            package = str(value).split(".")[0]
            raise ConfigError(
                f"{path}: {option}={value} is code of neither dfkd nor torchvision, and a run's folder may come from "
                f"anyone, so it was not run. Where you trust it, give its package: {TRUST}={package} dfkd ..."
            )


def _is_own(target: Any) -> bool:
    package, _, name = str(target).rpartition(".")
    if package not in OWN:
        return False
    module = importlib.import_module(package)
    return name in getattr(module, "__all__", ()) or (
        package == "torchvision.models" and getattr(getattr(module, name, None), "__module__", "").startswith(package)
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no container, by its full name."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
