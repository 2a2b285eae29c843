"""What a run leaves for TensorBoard and wandb: every curve once, pictures, and what runs are compared by."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from conftest import QUIET, TINY, Interrupted, command, result_of, without_training
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_interruption import end_when
from wandb.proto.wandb_internal_pb2 import Record

from dfkd.inversion.invert import fill_bank
from dfkd.inversion.recipe import InversionRecipe
from dfkd.training.fit import TrainerOptions, Workplace
from dfkd.training.metrics import Metrics

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}
OFFLINE = ["logger=wandb", "logger.offline=true"]


def events(run: Path) -> EventAccumulator:
    """What TensorBoard reads of a run."""
    found = EventAccumulator(str(run / "tensorboard"), EVERYTHING)
    return found.Reload()


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every curve that TensorBoard draws."""
    found = events(run)
    return {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def points(run: Path) -> Counter:
    """How many points `metrics.csv` has of every curve."""
    with (run / "metrics.csv").open() as lines:
        return Counter(f"{row['stage']}/{row['metric']}" for row in csv.DictReader(lines))


def records(run: Path) -> list[Record]:
    """The records of an offline run of wandb: blocks of 32 KiB in which every piece has a header of 7 bytes."""
    log, place, pieces, found = next(run.glob("*.wandb")).read_bytes(), 7, b"", []
    while place + 7 <= len(log):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", log[place : place + 7])
        pieces += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            found.append(Record.FromString(pieces))
            pieces = b""
    return found


def test_tensorboard_has_every_curve_pictures_and_the_result(finished, tmp_path):
    command([*TINY, "logger=tensorboard", "streaming.every=5", "controls=[]", "run_dir=run"], tmp_path)
    run, found = tmp_path / "run", events(tmp_path / "run")
    drawn, result = curves(run), result_of(tmp_path)
    assert {name: len(line) for name, line in drawn.items() if not name.startswith("result/")} == points(run)
    assert {"recover/total", "dream/feature", "stream/images"} <= set(drawn)
    assert drawn["result/recovered_accuracy"][0][1] == pytest.approx(result["recovered"]["accuracy"])
    assert {"dream/dreams", "stream/dreams", "result/dreams", "result/recovery"} <= set(found.Tags()["images"])
    assert len(found.Images("dream/dreams")) == 4 and len(found.Images("stream/dreams")) == 2  # a batch each
    (table,) = found.Tensors("result/table/text_summary")
    assert b"pruned, untouched" in table.tensor_proto.string_val[0]


def test_a_continued_run_writes_no_curve_twice_and_lacks_no_part_of_one(finished, tmp_path):
    weights = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    options = [
        *without_training(TINY), "teacher=pretrained", f"teacher.weights={weights}", "data=none", "controls=[]",
        "distillation.updates=240", "streaming.every=60", "logger=tensorboard", "run_dir=run",
    ]  # fmt: skip
    streamed = lambda: list(tmp_path.glob("artifacts/recovered/*.partial/streamed/batch_00001*"))  # noqa: E731
    assert end_when(options, tmp_path, streamed, signal.SIGKILL)[0] == -signal.SIGKILL
    command(options, tmp_path)
    drawn = {name: line for name, line in curves(tmp_path / "run").items() if not name.startswith("result/")}
    assert {name: len(line) for name, line in drawn.items()} == points(tmp_path / "run")
    for line in drawn.values():
        assert line == sorted(set(line), key=lambda point: point[0])
    assert [image.step for image in events(tmp_path / "run").Images("stream/dreams")] == [60, 120, 180]


@pytest.mark.parametrize("stopped_at", [14, 40])
def test_dreams_that_are_continued_send_what_undisturbed_ones_send(teacher, spec, tmp_path, stopped_at):
    recipe = InversionRecipe(num_images=32, batch_size=16, num_held_out=0, iterations=20, restarts=0)
    options, forwards = TrainerOptions(accelerator="cpu", compile="never", checkpoint_seconds=0), 0

    def stop(*_):
        nonlocal forwards
        forwards += 1
        if forwards == stopped_at:
            raise Interrupted

    def attempt(name: str) -> None:
        metrics = Metrics([TensorBoardLogger(tmp_path / name, name="", version="tensorboard", default_hp_metric=False)])
        fill_bank(teacher, recipe, spec, 0, Workplace(tmp_path / name, options, metrics, "dream"))
        metrics.finish()

    attempt("undisturbed")
    with teacher.register_forward_pre_hook(stop):
        with pytest.raises(Interrupted):
            attempt("continued")
        attempt("continued")
    whole, continued = curves(tmp_path / "undisturbed"), curves(tmp_path / "continued")
    assert whole == continued and len(whole["dream/total"]) == 40
    pictures = [events(tmp_path / name).Images("dream/dreams") for name in ("undisturbed", "continued")]
    assert [image.step for image in pictures[0]] == [image.step for image in pictures[1]] == [19, 39]


def test_without_tensorboard_it_says_what_to_install_before_the_work(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None  # not to be found\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "dfkd", *TINY, "logger=tensorboard", "run_dir=run"],
        cwd=tmp_path, env={**os.environ, **QUIET, "PYTHONPATH": paths}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and "pip install 'dfkd[tensorboard]'" in done.stderr
    assert not list(tmp_path.glob("artifacts/*/*")) and not (tmp_path / "run").exists()


def test_wandb_offline_has_a_sweeps_numbers_and_each_curve_over_its_stages_steps(finished, tmp_path):
    options = [*TINY, *OFFLINE, f"store={finished}/artifacts", "controls=[]"]
    command(["-m", *options, "streaming.every=5", "seed=0,2", "run_dir=sweep"], tmp_path)
    runs = sorted(tmp_path.glob("sweep/*/wandb/offline-run-*"))
    assert len(runs) == 2  # each job is its own run
    for run in runs:
        directory, defined, drawn, summary = run.parents[1], {}, defaultdict(list), {}
        result = json.loads((directory / "result.json").read_text())
        files = {path.name.split("_")[0] for path in (run / "files" / "media").rglob("*.*")}
        assert {"dreams", "recovery", "table", "stream"} <= files
        for record in records(run):
            if record.HasField("metric"):
                defined[record.metric.name] = record.metric
            if record.HasField("run"):
                started = record.run
            for item in record.history.item:
                drawn[item.key or "/".join(item.nested_key)].append(json.loads(item.value_json))
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        assert started.run_group == "sweep" and list(started.tags) == ["recovery"]
        of_a_curve = Counter({name: len(drawn[name]) for name in points(directory)})
        assert of_a_curve == points(directory) and {"recover/total", "stream/images"} <= set(of_a_curve)
        for name in of_a_curve:
            assert defined[name].step_metric == f"{name.split('/')[0]}/step" and defined[name].summary.none
        assert summary["result/recovered_accuracy"] == result["recovered"]["accuracy"]
        assert summary["result/batchnorm_accuracy"] == result["controls"]["batchnorm"]
        assert summary["result/sparsity"] == result["recovered"]["sparsity"]
        assert summary["result/seconds"] == result["timing"]["total"]
        assert not set(summary) & set(of_a_curve)


def test_any_logger_of_lightnings_is_sent_the_curves(tmp_path):
    metrics = Metrics([CSVLogger(tmp_path, name="", version="curves", flush_logs_every_n_steps=1)])
    metrics.replay("recover", [{"update": 1, "total": 2.0}, {"update": 2, "total": 1.0}])
    metrics.finish()
    with (tmp_path / "curves" / "metrics.csv").open() as lines:
        assert [(row["step"], row["recover/total"]) for row in csv.DictReader(lines)] == [("1", "2.0"), ("2", "1.0")]
