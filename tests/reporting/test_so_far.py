"""A run that stops early: what it has made, and what it knows by then."""

from __future__ import annotations

import json

import pandas as pd
from conftest import TINY, command, result_of


def test_stages_stop_where_they_are_told(tmp_path):
    command([*TINY, "stage=dream", "run_dir=run"], tmp_path)
    made = {path.parent.name for path in (tmp_path / "artifacts").glob("*/*/")}
    assert made == {"teacher", "scores", "dreams", "dream_quality"}
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_that_stops_early_leaves_what_it_knows(tmp_path):
    first = command([*TINY, "stage=teacher", "run_dir=run"], tmp_path).stdout
    known = json.loads((tmp_path / "run" / "so_far.json").read_text())
    assert known["after"] == "teacher" and set(known) == {"after", "teacher", "warnings", "timing"}
    assert f"right on {100 * known['teacher']['accuracy']:.1f} % of the test images" in first
    assert not (tmp_path / "run" / "dreams.png").exists()
    curve = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert set(curve["stage"]) == {"teacher"} and set(curve["metric"]) == {"total", "accuracy"}

    command([*TINY, "stage=dream", "run_dir=run"], tmp_path)
    known = json.loads((tmp_path / "run" / "so_far.json").read_text())
    assert known["after"] == "dream" and known["timing"]["dream"] > 0
    assert 0 <= known["dreams"]["quality"]["without_real_images"]["statistics_agreement"] <= 1
    assert (tmp_path / "run" / "dreams.png").stat().st_size > 1000

    command([*TINY, "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    command([*TINY, "run_dir=run"], tmp_path)  # and again, beside the result
    assert not (tmp_path / "run" / "so_far.json").exists()
    assert result["teacher"]["accuracy"] == known["teacher"]["accuracy"]
    for name in ("iterations", "teacher_accuracy", "quality"):
        assert result["dreams"][name] == known["dreams"][name]

    before = (tmp_path / "run" / "dreams.png").read_bytes()
    command([*TINY, "stage=dream", "inversion.iterations=7", "run_dir=run"], tmp_path)
    assert (tmp_path / "run" / "dreams.png").read_bytes() == before  # an earlier result's files stay as they are
    assert not (tmp_path / "run" / "so_far.json").exists()
