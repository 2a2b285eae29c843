"""`dfkd benchmark RUN`: size and speed of teacher and student on this machine, in float and in int8."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dfkd.api import load_dreams
from dfkd.deployment.export import CALIBRATION
from dfkd.deployment.finished import finished_run
from dfkd.deployment.int8 import quantize_onnx
from dfkd.deployment.integers import runs_in_int8
from dfkd.deployment.onnx_file import OnnxFile, export_onnx, plain_onnx
from dfkd.files import write_json
from dfkd.models.student_file import load_student
from dfkd.reporting.run_directory import BENCHMARK, product_of
from dfkd.reporting.run_files import PACKED_STUDENT, STUDENT
from dfkd.stages.networks import load

BATCHES = (1, 32)
REPEATS = 21
AT_LEAST = 0.01  # seconds of a measurement, so that the clock's own steps do not count
ALIKE = 0.1  # relative difference in time that is none


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: the median, and the quartiles, over repeats."""

    median: float
    low: float
    high: float


def measured(files: dict[str, Path], image_shape: tuple[int, int, int], batch: int, threads: int) -> dict[str, Latency]:
    """How long a call of each network takes, all of them in turn at every repeat, so that a busy spell hits them alike.

    Args:
        files: ONNX files by name of the network.
        image_shape: (C, H, W) of their input.
        batch: images per call.
        threads: of onnxruntime; 0: all.
    """
    networks = {name: OnnxFile(path, threads) for name, path in files.items()}
    images = torch.randn(batch, *image_shape, generator=torch.Generator().manual_seed(0))
    calls = {name: max(1, round(AT_LEAST / _seconds(network, images, 3))) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(REPEATS):
        for name, network in networks.items():
            seconds[name].append(1000 * _seconds(network, images, calls[name]))
    return {name: Latency(*_quartiles(values)) for name, values in seconds.items()}


def _seconds(network: OnnxFile, images: torch.Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        network(images)
    return (time.perf_counter() - start) / calls


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return round(middle, 4), round(low, 4), round(high, 4)


def benchmark_run(run: Path, store: Path | None = None) -> dict[str, Any]:
    """Measure teacher and student of a finished run, as they are and in int8, calibrated on its dreams.

    What is found goes into the run's folder, too (`BENCHMARK`), where `dfkd report` finds it.

    Returns:
        `machine`; by network (`teacher`, `student`, and `... int8`) its `bytes` and, by batch and threads, its latency
        in milliseconds; and the `bytes` of the packed student, whose zeros take a bit each.

    Raises:
        ConfigError: `run` holds no finished run, or its teacher or dreams are no longer in the store.
    """
    e = finished_run(run)
    images = load_dreams(run, store).images[:CALIBRATION]
    teacher = load(e.network, product_of(run, "teacher", store))
    networks = {"teacher": teacher, "student": load_student(run / STUDENT, e.student.build())}
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for name, network in networks.items():
            files[name] = Path(place) / f"{name}.onnx"
            export_onnx(network, files[name], e.spec.image_shape)
            if runs_in_int8(network):
                plain = plain_onnx(network, files[name], Path(place), e.spec.image_shape)
                files[f"{name} int8"] = Path(place) / f"{name}.int8.onnx"
                quantize_onnx(plain, files[f"{name} int8"], images, student=network)
        found: dict[str, Any] = {name: {"bytes": path.stat().st_size, "latency": {}} for name, path in files.items()}
        for batch in BATCHES:
            for threads in dict.fromkeys((1, os.cpu_count() or 1)):
                for name, latency in measured(files, e.spec.image_shape, batch, threads).items():
                    found[name]["latency"][_key(batch, threads)] = vars(latency)
    packed = (run / PACKED_STUDENT).stat().st_size if (run / PACKED_STUDENT).is_file() else None
    result = {"machine": machine(), "networks": found, "packed_student_bytes": packed}
    write_json(run / BENCHMARK, result)
    return result


def _key(batch: int, threads: int) -> str:
    return f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def machine() -> str:
    """The processor, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{[*names, platform.processor() or platform.machine()][0]}, {os.cpu_count()} logical processors"


def verdict(result: dict[str, Any]) -> str:
    """What is faster than the teacher at one image and one thread, and what is only smaller."""
    key = _key(1, 1)
    times = {name: entry["latency"][key]["median"] for name, entry in result["networks"].items()}
    faster, others = [], []
    for name in (name for name in times if name != "teacher"):
        ratio = times["teacher"] / times[name]
        if ratio > 1 + ALIKE:
            faster.append(f"{name} {ratio:.1f} times")
        else:
            others.append(name if ratio >= 1 - ALIKE else f"{name} (slower: {1 / ratio:.1f} times the time)")
    text = f"Faster than the teacher in float at one image and one thread: {', '.join(faster) or 'nothing'}."
    return text + (f" Not faster: {', '.join(others)}." if others else "")


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    keys = list(next(iter(result["networks"].values()))["latency"])
    table = Table(title=f"Milliseconds per call (quartiles), {result['machine']}")
    for column in ("network", "KiB", *keys):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, entry in result["networks"].items():
        times = [entry["latency"][key] for key in keys]
        cells = [f"{each['median']:.3f} ({each['low']:.3f}, {each['high']:.3f})" for each in times]
        table.add_row(name, f"{entry['bytes'] / 1024:.0f}", *cells)
    Console(width=None if Console().is_terminal else 130).print(table)
    print(verdict(result))
    if result["packed_student_bytes"]:
        print(f"Packed, the student's file has {result['packed_student_bytes'] / 1024:.0f} KiB.")


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd benchmark`."""
    description = "Size and speed of a finished run's teacher and student on this machine, by onnxruntime."
    parser = argparse.ArgumentParser(prog="dfkd benchmark", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--store", type=Path, help="where its teacher and dreams are (default: as in its configuration)"
    )
    parsed = parser.parse_args(arguments)
    show(benchmark_run(parsed.run, parsed.store))
