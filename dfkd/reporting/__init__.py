"""What a run leaves for people: the result, its table and pictures, and the way to read a folder of runs."""

from dfkd.reporting.runs import load_runs

__all__ = ["load_runs"]
