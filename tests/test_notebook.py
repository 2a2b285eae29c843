"""The notebook runs on a folder of real runs and shows their table, with data and without."""

from __future__ import annotations

from pathlib import Path

import nbformat
from conftest import TINY, command, without_training
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "results.ipynb"


def shown(runs: Path, monkeypatch) -> tuple[str, int]:
    """Text and number of pictures that the notebook shows for the runs in a folder."""
    monkeypatch.setenv("DFKD_RUNS", str(runs))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    text = " ".join(str(output.get("data", output.get("text", ""))) for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_shows_the_table_of_a_sweep(sweep, monkeypatch):
    text, pictures = shown(sweep / "sweep", monkeypatch)
    assert "6 runs under" in text and "compared by accuracy" in text and "±" in text
    assert pictures == 4


def test_without_data_it_shows_agreement(sweep, tmp_path, monkeypatch):
    weights = next(sweep.glob("artifacts/teacher/*/weights.safetensors"))
    command(
        [*without_training(TINY), "data=none", "teacher=pretrained", f"teacher.weights={weights}", "run_dir=run"],
        tmp_path,
    )
    text, pictures = shown(tmp_path, monkeypatch)
    assert "1 runs under" in text and "compared by agreement" in text
    assert pictures == 4
