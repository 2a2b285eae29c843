"""`dfkd benchmark`: what teacher and student take on this machine."""

from __future__ import annotations

import json

import pytest
from conftest import TINY, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.deployment.benchmark import verdict


def test_a_run_is_measured_in_float_and_in_int8(finished):
    printed = command(["benchmark", "run"], finished).stdout
    result = json.loads((finished / "run" / "benchmark.json").read_text())
    (finished / "run" / "benchmark.json").unlink()  # the run is other tests' as well
    assert set(result["networks"]) == {"teacher", "teacher int8", "student", "student int8"}
    for name, entry in result["networks"].items():
        assert name in printed and entry["bytes"] > 1000
        assert "batch 1, 1 thread" in entry["latency"] and "batch 32, 1 thread" in entry["latency"]
        for latency in entry["latency"].values():
            assert 0 < latency["low"] <= latency["median"] <= latency["high"]
    assert result["networks"]["student int8"]["bytes"] < result["networks"]["student"]["bytes"]
    assert result["packed_student_bytes"] == (finished / "run" / "student.packed.safetensors.gz").stat().st_size
    assert result["machine"] in printed.replace("\n", " ") and "Faster than the teacher" in printed


@pytest.mark.slow
def test_a_run_measures_at_its_end_and_the_report_has_it(finished, tmp_path):
    store = f"store={finished / 'artifacts'}"
    command(
        [*TINY, store, "quantization=int8", "controls=[]", "benchmark=true", "logger=tensorboard", "run_dir=run"],
        tmp_path,
    )
    logged = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"result/student int8 ms", "result/student int8 KiB"} <= set(logged.Tags()["scalars"])
    command(["export", "run"], tmp_path)
    report = command(["report", "run"], tmp_path).stdout
    for column in ("int8", "teacher ms", "student int8 ms", "student int8 KiB"):
        assert f"| {column} |" in report


def test_a_teacher_that_is_gone_is_named(finished, tmp_path):
    refused = command(["benchmark", str(finished / "run"), "--store", str(tmp_path)], tmp_path, check=False)
    assert refused.returncode == 1 and "store must hold dreams/" in refused.stderr


def test_the_verdict_tells_what_is_faster_from_what_is_only_smaller():
    def network(milliseconds: float) -> dict:
        return {"latency": {"batch 1, 1 thread": {"median": milliseconds}}}

    times = {"teacher": 1.0, "teacher int8": 0.5, "student": 0.95, "student int8": 2.0}
    said = verdict({"networks": {name: network(time) for name, time in times.items()}})
    assert "one thread: teacher int8 2.0 times." in said
    assert "Not faster: student, student int8 (slower: 2.0 times the time)." in said
