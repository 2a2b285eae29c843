"""Reading a folder of runs, for the notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from dfkd.reporting.run_directory import RESULT, runs_under, settled


def load_runs(directory: str | Path) -> pd.DataFrame:
    """One row per finished run found under `directory`: the fields of its `result.json` by dotted name, and `run`.

    Raises:
        FileNotFoundError: there is no finished run.
    """
    root = Path(directory)
    results = [run / RESULT for run in runs_under(root) if settled(run) and (run / RESULT).exists()]
    if not results:
        raise FileNotFoundError(f"There is no finished run (result.json) under {root}. Make one with `dfkd`.")
    rows = []
    for path in results:
        row = pd.json_normalize(json.loads(path.read_text(encoding="utf-8"))).iloc[0].to_dict()
        rows.append({"run": str(path.parent), **row})
    return pd.DataFrame(rows)
