"""The whole job by the real command: its files, reuse, sweeps, and no data."""

from __future__ import annotations

import csv
import json
import shutil
from importlib.metadata import version

import pytest
import torch
import yaml
from conftest import LEARNING, TINY, command, result_of, without_training
from safetensors.torch import load_file
from torch import nn

import dfkd
from dfkd.errors import ConfigError
from dfkd.models import CifarResNet, WideResNet
from dfkd.pruning import sparsity
from dfkd.reporting.runs import load_runs


def test_a_run_leaves_all_its_files(finished):
    assert {path.name for path in (finished / "run").iterdir()} == {
        "config.yaml", "result.json", ".lock", "metrics.csv", "dreams.png", "recovery.png", "student.safetensors",
        "student.packed.safetensors.gz", "sparsity.csv", "dfkd.log", "status.json", "command.txt", "artifacts.json",
    }  # fmt: skip
    assert not list(finished.rglob("*.partial"))
    assert yaml.safe_load((finished / "run" / "config.yaml").read_text())["inversion"]["iterations"] == 8
    assert json.loads((finished / "run" / "status.json").read_text())["status"] == "finished"
    assert "recover" in (finished / "run" / "dfkd.log").read_text()


def test_the_result_holds_what_it_promises(finished):
    result = result_of(finished)
    assert result["experiment"] == "demo" and result["seed"] == 0
    for network in (result["teacher"], result["pruned"], result["recovered"]):
        assert 0 <= network["accuracy"] <= 1
    for network in (result["pruned"], result["recovered"]):
        assert network["sparsity"] == pytest.approx(0.9, abs=1e-3)
        assert 0 <= network["agreement"] <= 1
    assert set(result["controls"]) == {"batchnorm", "noise", "procedural", "real"}
    assert all(0 <= accuracy <= 1 for accuracy in result["controls"].values())
    lost = result["teacher"]["accuracy"] - result["pruned"]["accuracy"]
    gained = result["recovered"]["accuracy"] - result["pruned"]["accuracy"]
    assert result["recovery"] == pytest.approx(gained / lost)
    assert result["dreams"] == {"count": 48, "held_out": 16} | {
        name: result["dreams"][name] for name in ("iterations", "teacher_accuracy", "quality", "setting")
    }
    assert 8 <= result["dreams"]["iterations"] <= 16  # they may be restarted once
    assert "with_real_images" not in result["dreams"]["quality"]
    assert {"teacher", "prune", "dream", "recover", "evaluate", "total"} <= set(result["timing"])
    assert result["environment"]["torch"] == version("torch")
    assert result["environment"]["device"] == "cpu"


def test_the_exported_student_is_plain_and_its_zeros_are_in_place(finished):
    student = CifarResNet(8, in_channels=1, width=8)
    student.load_state_dict(load_file(finished / "run" / "student.safetensors"))
    weights = [m.weight for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(0.9, abs=1e-3)
    with (finished / "run" / "sparsity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["zeros"]) for row in rows) == zeros


def test_the_student_is_pruned_as_it_learns_and_what_pruning_at_once_leaves_is_the_yardstick(finished):
    result, networks = result_of(finished), {}
    for name in ("teacher", "prune", "recover"):
        file = finished / "artifacts" / result["artifacts"][name] / "weights.safetensors"
        networks[name] = dfkd.load_student(file, CifarResNet(8, in_channels=1, width=8))
    networks["at once"] = dfkd.prune(networks["teacher"], 0.9)
    zeros = {
        name: torch.cat([value.flatten() == 0 for value in network.parameters() if value.dim() > 1])
        for name, network in networks.items()
    }
    assert torch.equal(zeros["prune"], zeros["at once"])
    assert not torch.equal(zeros["recover"], zeros["prune"])
    assert result["recovered"]["sparsity"] == pytest.approx(result["pruned"]["sparsity"], abs=1e-3)


def test_the_accuracy_in_the_result_is_that_of_the_exported_file(finished, spec):
    from dfkd.real_data import Purpose, digits

    student = CifarResNet(8, in_channels=1, width=8)
    student.load_state_dict(load_file(finished / "run" / "student.safetensors"))
    images, labels = digits(spec).open(Purpose.EVALUATION).tensors
    with torch.no_grad():
        accuracy = (student.eval()(images).argmax(1) == labels).double().mean().item()
    assert result_of(finished)["recovered"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_printed_table_agrees_with_the_result(finished):
    printed = (finished / "printed.txt").read_text()
    result = result_of(finished)
    for accuracy in (result["teacher"]["accuracy"], result["recovered"]["accuracy"], *result["controls"].values()):
        assert f"{100 * accuracy:.1f} %" in printed


def test_a_run_prints_what_is_its_own(finished):
    printed = (finished / "printed.txt").read_text() + (finished / "errors.txt").read_text()
    for word in ("GPU available", "TPU", "Tip", "litlogger", "Warning", "warn", "wandb"):
        assert word not in printed


def test_metrics_hold_the_history_of_every_stage(finished):
    with (finished / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == {"teacher", "dream", "recover", "noise", "procedural", "real"}
    assert {row["batch"] for row in rows if row["stage"] == "dream"} == {"0", "1", "2", "3"}
    *_, last = (
        float(row["value"]) for row in rows if (row["stage"], row["metric"]) == ("recover", "held_out_agreement")
    )
    assert last == pytest.approx(result_of(finished)["distilled"]["agreement"], abs=1e-6)


def test_a_second_run_reuses_everything_and_agrees(finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*.safetensors")}
    (finished / "again").mkdir()
    (finished / "again" / "stream.png").write_bytes(b"of an earlier run, with streaming")
    command([*TINY, "run_dir=again"], finished)
    assert not (finished / "again" / "stream.png").exists()
    first, again = result_of(finished), result_of(finished, "again")
    assert {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*.safetensors")} == before
    assert set(again["reused"]) == {
        "teacher", "prune", "dream", "recover", "batchnorm", "choose", "noise", "procedural", "real",
        "evaluate", "dream_quality", "teacher_scores",
    }  # fmt: skip
    for part in ("teacher", "pruned", "recovered", "controls", "timing", "artifacts"):
        assert first[part] == again[part]


def test_a_refused_run_leaves_an_earlier_result_alone(finished):
    before = (finished / "run" / "result.json").read_bytes()
    done = command([*TINY, "pruning.amount=1", "run_dir=run"], finished, check=False)
    assert done.returncode == 1
    assert (finished / "run" / "result.json").read_bytes() == before
    assert yaml.safe_load((finished / "run" / "config.yaml").read_text())["pruning"]["amount"] == 0.9


def test_without_data_the_same_dreams_give_the_same_student_and_agreement_is_reported(finished, tmp_path):
    weights = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    options = [*without_training(TINY), "teacher=pretrained", f"teacher.weights={weights}", f"store={tmp_path}/store"]
    command([*options, "run_dir=with"], tmp_path)
    command([*options, "data=none", "run_dir=without"], tmp_path)
    with_data, without = result_of(tmp_path, "with"), result_of(tmp_path, "without")
    assert without["teacher"]["accuracy"] is None and without["recovery"] is None
    assert without["controls"] == dict.fromkeys(("batchnorm", "noise", "procedural", "real"))
    assert without["recovered"]["accuracy"] is None and 0 <= without["recovered"]["agreement"] <= 1
    assert without["recovered"]["agreement"] == with_data["recovered"]["agreement"]
    assert {"dream", "recover"} <= set(without["reused"])
    assert (tmp_path / "without" / "recovery.png").stat().st_size > 1000


OWN_NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(
            nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 7),
        )
"""


def test_a_users_own_network_without_data(tmp_path):
    (tmp_path / "my_package.py").write_text(OWN_NETWORK)
    scope: dict = {}
    exec(OWN_NETWORK, scope)
    state = {f"module.{name}": value for name, value in scope["Net"](12).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "mine.pt")
    options = [option for option in TINY if not option.startswith(("experiment", "+model", "model", "teacher"))]
    own = ["model._target_=my_package.Net", "+model.width=12", "teacher.weights=mine.pt", "input.num_classes=7"]
    own += ["input.image_shape=[2,12,17]", "input.mean=[0.5,0.1]", "input.std=[0.25,1]"]
    command(["experiment=custom", *options, *own, "pruning.amount=0.4", "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    assert result["recovered"]["sparsity"] == pytest.approx(0.4, abs=0.01)
    assert result["recovered"]["accuracy"] is None and 0 <= result["recovered"]["agreement"] <= 1
    assert load_file(tmp_path / "run" / "student.safetensors").keys() == scope["Net"](12).state_dict().keys()


def test_an_edit_of_the_users_network_is_noticed(tmp_path):
    """The same file of weights, another activation: nothing that was made before is taken for it."""
    scope: dict = {}
    exec(OWN_NETWORK, scope)
    torch.save(scope["Net"](12).state_dict(), tmp_path / "mine.pt")
    options = [option for option in TINY if not option.startswith(("experiment", "+model", "model", "teacher"))]
    own = ["model._target_=my_package.Net", "+model.width=12", "teacher.weights=mine.pt", "input.num_classes=7"]
    own += ["input.image_shape=[2,12,17]", "input.mean=[0.5,0.1]", "input.std=[0.25,1]", "controls=[]"]
    for run, source in (("run", OWN_NETWORK), ("edited", OWN_NETWORK.replace("ReLU(inplace=True)", "SiLU()"))):
        (tmp_path / "my_package.py").write_text(source)
        command(["experiment=custom", *options, *own, f"run_dir={run}"], tmp_path)
    first, edited = result_of(tmp_path), result_of(tmp_path, "edited")
    assert edited["reused"] == []
    assert not set(first["artifacts"].values()) & set(edited["artifacts"].values())
    (tmp_path / "my_package.py").write_text(OWN_NETWORK + "# a remark\n")
    command(["experiment=custom", *options, *own, "run_dir=remark"], tmp_path)
    assert set(result_of(tmp_path, "remark")["reused"]) == set(first["artifacts"])  # what it computes is the same


def test_classes_in_another_order_than_the_teachers_are_doubted_aloud(finished, tmp_path):
    weights = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    options = [*without_training(TINY), "teacher=pretrained", f"teacher.weights={weights}", "controls=[]"]
    done = command([*options, "data.only=[1,2,3,4,5,6,7,8,9,0]", "run_dir=run"], tmp_path)
    (warning,) = (found for found in result_of(tmp_path)["warnings"] if "classes were in another order" in found)
    assert warning in done.stdout
    assert not any("another order" in found for found in result_of(finished)["warnings"])


def test_a_sweep_inverts_each_teacher_once_per_seed(sweep):
    runs = load_runs(sweep / "sweep")
    assert len(runs) == 6 and runs["run"].nunique() == 6
    assert sorted(zip(runs["seed"], runs["pruned.sparsity"].round(1), strict=True)) == [
        (seed, amount) for seed in (0, 1) for amount in (0.5, 0.8, 0.9)
    ]
    assert len(list((sweep / "artifacts" / "dreams").glob("*/artifact.json"))) == 2
    assert len(list((sweep / "artifacts" / "teacher").glob("*/artifact.json"))) == 2
    assert (
        len(list((sweep / "artifacts" / "recovered").glob("*/artifact.json"))) == 30
    )  # student, three controls, batch norm


def test_a_failing_job_of_a_sweep_says_so_and_the_others_finish(tmp_path):
    options = [*without_training(TINY), "pruning.amount=1.5,0.5", "data=none", "teacher=pretrained"]
    done = command(["-m", *options, "teacher.weights=none.pt", "run_dir=sweep"], tmp_path, check=False)
    assert done.returncode == 1
    statuses = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("sweep/*/status.json"))]
    assert [status["status"] for status in statuses] == ["failed", "failed"]
    for path in tmp_path.glob("sweep/*/dfkd.log"):
        assert "there is no file none.pt" in path.read_text()


@pytest.mark.parametrize("criterion", ["filters", "filters_taylor"])
def test_a_student_with_fewer_filters_is_recovered_and_its_file_builds_it(finished, tmp_path, criterion):
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    options = [*(option for option in TINY if not option.startswith("pruning")), f"pruning={criterion}"]
    command([*options, "run_dir=run"], tmp_path)
    before, after = result_of(finished), result_of(tmp_path)
    assert {"teacher", "dream"} <= set(after["reused"])
    teacher_cost = before["recovered"]["multiply_adds"]  # single zeros cost as much as any weight
    assert 0.5 * teacher_cost < after["recovered"]["multiply_adds"] <= 0.7 * teacher_cost
    assert after["recovered"]["parameters"] < before["recovered"]["parameters"]
    assert 0 < after["pruned"]["sparsity"] < 1
    student = dfkd.load_student(tmp_path / "run" / "student.safetensors", CifarResNet(8, in_channels=1, width=8))
    assert sum(p.numel() for p in student.parameters()) == after["recovered"]["parameters"]
    assert student(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_in_rounds_the_amount_rises_and_each_recovery_continues_from_the_last(finished, tmp_path):
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    command([*TINY, "rounds=3", "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    assert result["recovered"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert result["pruned"] == result_of(finished)["pruned"]  # what pruning at once leaves stays the yardstick
    for chain in ("recover", "noise", "procedural", "real"):
        sparsities = []
        for done in (1, 2, 3):
            pruned = tmp_path / "artifacts" / result["artifacts"][f"{chain}_pruned_{done}"]
            network = CifarResNet(8, in_channels=1, width=8)
            sparsities.append(sparsity(dfkd.load_student(pruned / "weights.safetensors", network)))
        assert sparsities == pytest.approx([0.9 * (1 - 8 / 27), 0.9 * (1 - 1 / 27), 0.9], abs=2e-3)
        last = json.loads(
            (tmp_path / "artifacts" / result["artifacts"][f"{chain}_pruned_3"] / "artifact.json").read_text()
        )
        assert last["determined_by"]["inputs"]["before"] == result["artifacts"][f"{chain}_2"]


def test_controls_can_be_left_out(finished, tmp_path):
    command([*TINY, "controls=[noise]", f"store={finished}/artifacts", "run_dir=run"], tmp_path)
    result, full = result_of(tmp_path), result_of(finished)
    assert result["controls"] == full["controls"] | {"real": None, "procedural": None}
    assert result["recovered"] == full["recovered"]
    assert "real" not in result["artifacts"]


def test_held_out_dreams_that_choose_a_student_are_part_of_its_key(finished, tmp_path):
    options = [*TINY, "controls=[noise]", f"store={finished}/artifacts"]
    command([*options, "inversion.iterations=9", "run_dir=others"], tmp_path)
    noise = {"without": result_of(tmp_path, "others")["artifacts"]["noise"]}
    assert noise["without"] == result_of(finished)["artifacts"]["noise"]
    for run, iterations in (("with", 8), ("with others", 9)):
        command([*options, "distillation.patience=2", f"inversion.iterations={iterations}", f"run_dir={run}"], tmp_path)
        noise[run] = result_of(tmp_path, run)["artifacts"]["noise"]
    assert len(set(noise.values())) == 3


def test_a_teacher_starts_from_given_weights(finished, tmp_path):
    start = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    slowly = ["teacher.training.learning_rate=1e-9", "teacher.training.updates=1", "stage=teacher"]
    command([*TINY, *slowly, "run_dir=run"], tmp_path)
    command([*TINY, *slowly, "run_dir=run", f"teacher.training.start={start}"], tmp_path)
    teachers = [load_file(path) for path in tmp_path.glob("artifacts/teacher/*/weights.safetensors")]
    assert len(teachers) == 2
    names = [name for name in teachers[0] if name.endswith("weight")]
    distances = [max((load_file(start)[name] - made[name]).abs().max() for name in names) for made in teachers]
    assert min(distances) < 1e-6 and max(distances) > 0.1


def test_damaged_dreams_are_made_again_and_never_used(finished, tmp_path):
    weights = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    options = [*without_training(TINY), "teacher=pretrained", f"teacher.weights={weights}", "data=none", "run_dir=run"]
    command(options, tmp_path)
    before = result_of(tmp_path)
    batch = next(tmp_path.glob("artifacts/dreams/*/batch_00001.safetensors"))
    content = batch.read_bytes()
    batch.write_bytes(content[:-5])
    done = command(options, tmp_path)
    assert "does not match its checksum" in done.stdout + done.stderr
    assert batch.read_bytes() == content
    assert "dream" not in result_of(tmp_path)["reused"]
    assert result_of(tmp_path)["recovered"] == before["recovered"]


def test_a_fresh_student_of_another_architecture_is_taught(finished, tmp_path):
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    student = ["model@student=wrn_16_1", "task=transfer", "distillation=transfer"]
    command([*LEARNING, *student, "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    assert {"teacher", "dream"} <= set(result["reused"])
    assert {"teacher", "student", "transfer"} <= set(result["artifacts"]) and "prune" not in result["artifacts"]
    assert 0 <= result["student"]["accuracy"] <= 1 and result["student"]["sparsity"] == 0
    assert set(result["controls"]) == {"noise", "procedural", "real"} and "pruned" not in result
    network = WideResNet(16, 1, in_channels=1)
    assert result["student"]["parameters"] == sum(p.numel() for p in network.parameters())
    fresh = tmp_path / "artifacts" / result["artifacts"]["student"] / "weights.safetensors"
    before, after = load_file(fresh), load_file(tmp_path / "run" / "student.safetensors")
    assert before.keys() == after.keys() == network.state_dict().keys()
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    command(["export", "run", "--format", "pytorch"], tmp_path)
    assert torch.load(tmp_path / "run" / "student.pt", weights_only=True).keys() == after.keys()
    table = command(["report", "run"], tmp_path).stdout
    assert "student" in table and "pruned" not in table


def test_a_student_that_distillation_makes_worse_is_not_the_result(finished, tmp_path):
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    harmful = ["distillation.learning_rate=3", "distillation.warmup_updates=0", "distillation.gradual=0"]
    done = command([*TINY, *harmful, "controls=[]", "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    chosen, distances = result["choice"]["chosen"], result["choice"]["criterion"]
    assert chosen in ("pruned", "batchnorm")
    assert distances[chosen]["distance"] == min(each["distance"] for each in distances.values())
    assert distances[chosen]["distance"] < distances["distilled"]["distance"]
    scores = result["pruned"]["accuracy"] if chosen == "pruned" else result["controls"]["batchnorm"]
    assert result["recovered"]["accuracy"] == scores
    made = result["artifacts"]["prune" if chosen == "pruned" else "batchnorm"]
    student = load_file(tmp_path / "artifacts" / made / "weights.safetensors")
    exported = load_file(tmp_path / "run" / "student.safetensors")
    assert all(torch.equal(value, student[name]) for name, value in exported.items())
    assert "distilled on dreams, not chosen" in done.stdout and "recovered: " in done.stdout
    assert any("Distillation left the student farther" in warning for warning in result["warnings"])


def test_the_dreams_of_a_run_are_loaded_by_its_folder(finished, tmp_path):
    result = result_of(finished)
    dreams = dfkd.load_dreams(finished / "run", store=finished / "artifacts")
    assert len(dreams.training) == 48 and len(dreams.held_out) == 16
    assert dreams.teacher_accuracy == pytest.approx(result["dreams"]["teacher_accuracy"])
    with pytest.raises(ConfigError, match="store must hold dreams/"):
        dfkd.load_dreams(finished / "run", store=tmp_path)
    with pytest.raises(ConfigError, match="run must be the directory of a run, got"):
        dfkd.load_dreams(tmp_path)
