"""How a run's log looks on the screen; its file `dfkd.log` has times and names as well."""

from __future__ import annotations

import logging


class Plain(logging.Formatter):
    """The message alone, and before a warning that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"
