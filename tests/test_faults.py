"""Faults of a machine: nothing finished is lost, nothing half made is used, and the message names the remedy.

See docs/faults.md; killed processes are in test_interruption.py and test_chaos.py.
"""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import experiments
import pytest
from conftest import TINY, command, result_of
from running import FORKS

from dfkd.errors import ArtifactError, MemoryShortageError
from dfkd.stages import Runner
from dfkd.store import Store
from dfkd.tasks import TASKS
from dfkd.tasks.task import run_stages

SHORT = [*TINY, "controls=[]"]
TOMORROW = 86_400


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the smallest experiment makes when nothing happens to it."""
    return continued(tmp_path_factory.mktemp("undisturbed"))


def continued(root: Path):
    return experiments.content(experiments.run(experiments.experiment(*experiments.LEARNING), root))


MOMENTS = ["dreams", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("teacher", "recovered"))]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_full_names_the_remedy_and_the_same_command_continues(moment, finished, tmp_path, small_disk):
    place = small_disk("80m")

    def fill() -> None:
        while not list(place.glob(f"artifacts/{moment}/*.partial")):
            time.sleep(0.002)
        with (place / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(2**16))
            except OSError:
                pass

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    options = [*SHORT, f"store={place / 'artifacts'}", "run_dir=run"]
    done = command(options, tmp_path, check=False)
    thread.join(5)
    assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
    assert "with room. What was finished is kept: the same command then continues." in done.stderr or (
        "or make room." in done.stderr  # it was full before the next stage began
    )
    assert not (tmp_path / "run" / "result.json").exists()
    (place / "filler").unlink()
    command(options, tmp_path)
    assert (tmp_path / "run/student.safetensors").read_bytes() == (finished / "run/student.safetensors").read_bytes()


def test_a_store_that_is_read_only_gives_what_it_has_and_says_what_it_lacks(finished, tmp_path, read_only):
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    with read_only(tmp_path / "artifacts"):
        command([*TINY, "run_dir=run"], tmp_path)
        done = command([*TINY, "run_dir=other", "seed=1"], tmp_path, check=False)
    assert result_of(tmp_path)["recovered"] == result_of(finished)["recovered"]
    assert result_of(tmp_path)["seconds_of_this_run"] == 0
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "store must be a folder that can be written to, got artifacts (Read-only file system)" in done.stderr
    assert "Choose another with store=..., or make room. Of what this run needs, it has no teacher" in done.stderr


def test_a_run_directory_that_is_read_only_is_refused_before_the_work(tmp_path, read_only):
    (tmp_path / "run").mkdir()
    with read_only(tmp_path / "run"):
        done = command([*SHORT, "run_dir=run"], tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"run_dir must be a folder that can be written to, got {tmp_path / 'run'} (Read-only" in done.stderr
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_product_that_is_damaged_between_two_stages_is_not_used_and_made_again(damage, tmp_path, undisturbed):
    made = experiments.experiment(*experiments.LEARNING)
    runner = Runner(Store(tmp_path), made.options)
    plan = TASKS[made.task].plan(made)

    def ended(part: str) -> None:
        if part == "dream":
            file = next(tmp_path.glob("dreams/*/batch_00000.safetensors"))
            content = file.read_bytes()
            if damage == "gone":
                shutil.rmtree(file.parent)
            else:
                file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped" else content[:100])

    with pytest.raises(ArtifactError, match=r"batch_00000\.safetensors"):
        run_stages(plan, runner, "evaluate", ended)
    assert continued(tmp_path) == undisturbed


def test_a_clock_that_goes_back_changes_nothing(tmp_path, undisturbed):
    """All that was written before it then seems to be of the future."""
    experiments.run(experiments.experiment(*experiments.LEARNING), tmp_path, last="dream")
    partial = next(tmp_path.glob("dreams/*/"))
    partial.rename(partial.with_suffix(".partial"))  # of a killed run
    (partial.with_suffix(".partial") / "artifact.json").unlink()
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() + TOMORROW, time.time() + TOMORROW))
    assert continued(tmp_path) == undisturbed


def test_two_sweeps_at_once_make_everything_once(tmp_path):
    options = [*SHORT, "pruning.amount=0.8,0.9"]
    with ThreadPoolExecutor(2) as sweeps:
        list(sweeps.map(lambda name: command(["-m", *options, f"run_dir={name}"], tmp_path), ("one", "two")))
    results = [
        result_of(path.parents[1], path.parent.name)
        for name in ("one", "two")
        for path in tmp_path.glob(f"{name}/*/result.json")
    ]
    assert len(results) == 4
    made = [
        artifact for found in results for stage, artifact in found["artifacts"].items() if stage not in found["reused"]
    ]
    assert len(made) == len(set(made)) and set(made) == {
        each for found in results for each in found["artifacts"].values()
    }
    by_amount = {}
    for found in results:
        by_amount.setdefault(found["recovered"]["sparsity"], []).append(found["recovered"])
    assert len(by_amount) == 2 and all(one == two for one, two in by_amount.values())


def _with_little_memory(options: list[str], root: str, moment: str, said) -> None:
    def ended(part: str) -> None:
        if part == moment:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            used = 1024 * int(status["VmSize"].split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))

    try:
        made = experiments.experiment(*options)
        run_stages(TASKS[made.task].plan(made), Runner(Store(Path(root)), made.options), "evaluate", ended)
        said.put("nothing")
    except MemoryShortageError as error:
        said.put(str(error))
    except Exception as error:
        said.put(repr(error))


@pytest.mark.parametrize(
    ("stage", "before", "kept", "batch"), [("dream", "teacher", "teacher", 2048), ("recover", "prune", "dreams", 64)]
)
def test_memory_that_runs_out_names_the_remedy_and_costs_nothing_finished(stage, before, kept, batch, tmp_path):
    options = ["inversion.num_images=2048", f"inversion.batch_size={batch}", "inversion.num_held_out=0", "controls=[]"]
    options += ["distillation.updates=6", "distillation.batch_size=2048", "model.width=8"]
    said = FORKS.SimpleQueue()  # whose messages need no thread, for which there may be no memory either
    process = FORKS.Process(target=_with_little_memory, args=(options, str(tmp_path), before, said))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    message = said.get()
    assert message.startswith(f"{stage}: memory ran out"), message
    assert "What was finished is kept. Lower inversion.batch_size where dreams are made" in message
    assert list(tmp_path.glob(f"{kept}/*/artifact.json"))
    assert not [path for path in tmp_path.glob("*/*/artifact.json") if path.parent.suffix == ".partial"]
