"""Errors a user can act on: each message names the option, the value found, what is allowed and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")  # as PyTorch says it


class DfkdError(Exception):
    """Base of every error that `dfkd` raises on purpose."""


class ConfigError(DfkdError, ValueError):
    """An option has a value that cannot work."""


class ModelError(DfkdError, ValueError):
    """A network does not fit the job: no batch norm, or a wrong input or output shape."""


class WeightsError(DfkdError):
    """A weights file is missing, unreadable, unsafe, or does not belong to the model."""


class DataError(DfkdError):
    """A data set is missing, empty or not what the options say."""


class InversionError(DfkdError):
    """An inversion left the finite numbers; the batch in hand was dropped."""


class TrainingError(DfkdError):
    """A training left the finite numbers; its last checkpoint stays."""


class ArtifactError(DfkdError):
    """A stored file is damaged, or the store cannot be written."""


class MemoryShortageError(DfkdError):
    """Memory ran out while something was made; what was finished is kept."""


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in Python, in PyTorch or on a device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )


def require(condition: bool, option: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` naming `option`, its `value` and what is `allowed`, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{option} must be {allowed}, got {value!r}.")


def is_whole(value: object, least: int = 1) -> bool:
    """Whether `value` is an integer, and `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether `value` is an integer or a floating-point number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """A question with the known name that is closest to a mistyped one, after `before`; nothing where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {before}{close[0]}?" if close else ""


def listing(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, and how many more there are: lists in error messages stay readable."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def printable(name: object) -> str:
    """A path, or a message with one, as one line of text that any terminal and any file takes."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda control: repr(control[0])[1:-1], text)
