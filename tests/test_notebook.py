"""The notebooks run: on a folder of real runs, with data and without; and from Python alone."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from conftest import TINY, command, without_training
from nbclient import NotebookClient

ROW = re.compile(r"^(label|statistics|both|noise|smooth|real images) +([\d. ]+)$", re.MULTILINE)
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def shown(runs: Path, monkeypatch) -> tuple[str, int]:
    """Text and number of pictures that the notebook of results shows for the runs in a folder."""
    monkeypatch.setenv("DFKD_RUNS", str(runs))
    return executed("results")


def executed(name: str) -> tuple[str, int]:
    """Text and number of pictures that a notebook shows."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    text = " ".join(str(output.get("data", output.get("text", ""))) for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_shows_the_table_of_a_sweep(sweep, monkeypatch):
    text, pictures = shown(sweep / "sweep", monkeypatch)
    assert "6 runs under" in text and "compared by accuracy" in text and "±" in text
    assert pictures == 4


@pytest.mark.slow
def test_without_data_it_shows_agreement(sweep, tmp_path, monkeypatch):
    weights = next(sweep.glob("artifacts/teacher/*/weights.safetensors"))
    command(
        [*without_training(TINY), "data=none", "teacher=pretrained", f"teacher.weights={weights}", "run_dir=run"],
        tmp_path,
    )
    text, pictures = shown(tmp_path, monkeypatch)
    assert "1 runs under" in text and "compared by agreement" in text
    assert pictures == 4


def test_a_network_of_ones_own_comes_back_in_the_notebook():
    text, pictures = executed("your_own_network")
    lost, left = map(float, re.search(r"pruning lost ([\d.]+)%, (-?[\d.]+)% are left", text).groups())
    assert lost > 50 and left < lost / 2
    assert pictures == 2


def test_the_notebook_of_losses_shows_what_each_term_does():
    text, pictures = executed("losses")
    rows = dict(ROW.findall(text))
    label, statistics, variation = ({name: float(row.split()[n]) for name, row in rows.items()} for n in range(3))
    assert len(rows) == 6 and label["label"] < label["both"] < label["statistics"]
    assert statistics["statistics"] < statistics["label"] and variation["smooth"] < variation["both"]
    assert text.count("recovered on ") == 3 and pictures == 2


def test_the_notebooks_are_kept_without_what_they_showed():
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert not [cell for cell in nbformat.read(path, as_version=4).cells if cell.get("outputs")], path.name
