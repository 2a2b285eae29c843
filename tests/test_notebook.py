"""The notebook runs on a folder of real runs and shows their table."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from conftest import TINY, command
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "results.ipynb"


@pytest.mark.parametrize("data", ["data=digits", "data=none"])
@pytest.mark.filterwarnings("ignore:.*tornado.*:DeprecationWarning", "ignore:.*zmq.*")
def test_the_notebook_shows_a_sweep(tmp_path, monkeypatch, data):
    command([*TINY, "stage=teacher", "run_dir=first"], tmp_path)
    weights = next(tmp_path.glob("artifacts/teacher/*/weights.safetensors"))
    command(["-m", *TINY, data, "teacher=given", f"teacher.weights={weights}", "pruning.amount=0.5,0.9", "seed=0,1",
             "run_dir=sweep"], tmp_path)  # fmt: skip
    monkeypatch.setenv("DFKD_RUNS", str(tmp_path / "sweep"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    text = " ".join(str(output.get("data", output.get("text", ""))) for output in outputs)
    assert "4 runs under" in text and "±" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
