"""`dfkd audit`: whether a run's dreams are nearer to training images than to test images."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import LEARNING, command, result_of
from omegaconf import OmegaConf

from dfkd.dreams import DreamBank, Dreams
from dfkd.models import InputSpec
from dfkd.privacy.audit import rows_of, verdict
from dfkd.real_data import Purpose, digits
from dfkd.store import Store

SPEC = InputSpec((1, 8, 8), 10, (0.305,), (0.376,))  # of the demo


@pytest.fixture(scope="module")
def audited(finished, tmp_path_factory):
    """A folder with a copy of the finished run, audited, and what was printed."""
    folder = tmp_path_factory.mktemp("audited")
    shutil.copytree(finished / "run", folder / "run")
    printed = command(["audit", "run", "--store", str(finished / "artifacts"), "--images", "300"], folder).stdout
    (folder / "printed.txt").write_text(printed)
    return folder


def audit_of(folder) -> dict:
    return json.loads((folder / "run" / "audit.json").read_text())


def test_a_run_is_audited_in_pixels(audited, finished):
    found, printed = audit_of(audited), (audited / "printed.txt").read_text()
    assert found["images"] == {"data": "digits", "members": 300, "others": 300}
    assert found["dreams"] == {"artifact": result_of(finished)["artifacts"]["dream"], "count": 64}
    assert found["opened_for"] == ["privacy audit", "evaluation"] and found["verifier"] is None
    low, high = found["distances"]["pixels"]["interval"]
    assert 0 < low < found["distances"]["pixels"]["auc"] < high < 1
    assert "300 training images (members)" in printed.replace("\n", " ") and "Only pixels were compared" in printed
    assert (audited / "run" / "audit.png").stat().st_size > 10_000


def test_the_dreams_and_the_result_stay_as_they_were(audited, finished):
    for path in (finished / "run").iterdir():
        assert not path.is_file() or path.read_bytes() == (audited / "run" / path.name).read_bytes()
    dreams = result_of(finished)["artifacts"]["dream"]
    assert Store(finished / "artifacts").named(dreams) is not None  # with the checksums that it was made with


def test_the_report_has_the_audits_of_its_runs(audited):
    report = command(["report", "run"], audited).stdout
    (line,) = [line for line in report.splitlines() if "| pixels AUC |" in line]
    value = f"{100 * audit_of(audited)['distances']['pixels']['auc']:.1f}"
    row = report.splitlines()[report.splitlines().index(line) + 2]
    assert row.strip("| ").split(" | ")[line.strip("| ").split(" | ").index("pixels AUC")] == value


def test_a_verifier_adds_its_features(audited, finished):
    weights = finished / "artifacts" / result_of(finished)["artifacts"]["teacher"] / "weights.safetensors"
    shutil.copytree(audited / "run", audited / "verified" / "run")
    options = [f"verifier.weights={weights}", "--store", str(finished / "artifacts"), "--images", "100"]
    printed = command(["audit", "run", *options], audited / "verified").stdout
    found = audit_of(audited / "verified")
    assert set(found["distances"]) == {"pixels", "features"} and found["verifier"] == "weights.safetensors"
    assert found["images"]["members"] == 100 and "Only pixels" not in printed and "features" in printed


def plant(folder, images: torch.Tensor) -> None:
    """Let the run's dreams be `images`."""
    dreams = Dreams(images.half(), *(torch.zeros(len(images), dtype=torch.long),) * 2, torch.ones(len(images)))

    def make(directory):
        DreamBank(directory).write(0, dreams, [])
        return {"batches": {"training": 1, "held_out": 0}, "num_held_out": 0}

    product = Store(folder / "artifacts").obtain("dreams", {"planted": float(images.sum())}, make)
    result = json.loads((folder / "run" / "result.json").read_text())
    result["artifacts"]["dream"] = f"dreams/{product.key}"
    (folder / "run" / "result.json").write_text(json.dumps(result))


def test_planted_copies_of_training_images_are_found_out(audited, tmp_path):
    shutil.copytree(audited / "run", tmp_path / "run")
    members = torch.stack([image for image, _ in digits(SPEC).open(Purpose.PRIVACY_AUDIT)])
    plant(tmp_path, members + 0.3 * torch.randn(members.shape))
    printed = command(["audit", "run"], tmp_path).stdout
    pixels = audit_of(tmp_path)["distances"]["pixels"]
    assert pixels["interval"][0] > 0.9 and pixels["true_positives"] > 0.5
    # Of 1,437 copied images 360 are among the members, as many as there are test images; others go to either.
    assert pixels["dreams_by_members"]["interval"][0] > 0.5
    assert "Dreams tell training images from test images (by pixels in 1 of 1 runs)" in printed


def test_dreams_that_know_no_image_are_not_found_out(audited, tmp_path):
    shutil.copytree(audited / "run", tmp_path / "run")
    plant(tmp_path, torch.randn(400, 1, 8, 8))
    printed = command(["audit", "run"], tmp_path).stdout
    low, high = audit_of(tmp_path)["distances"]["pixels"]["interval"]
    assert low < 0.5 < high and "not told from test images" in printed


def test_a_run_that_stopped_after_its_dreams_is_audited_and_its_few_members_are(tmp_path):
    command([*LEARNING, "data.per_class=6", "teacher.training.batch_size=32", "stage=dream", "run_dir=run"], tmp_path)
    command(["audit", "run"], tmp_path)
    found = audit_of(tmp_path)
    assert (found["images"]["members"], found["images"]["others"]) == (60, 300)  # 33 of some class, five times six
    assert found["distances"]["pixels"]["dreams_by_members"]["expected"] == pytest.approx(1 / 6)


def test_runs_of_several_seeds_are_told_as_mean_and_deviation():
    def audit(value: float) -> dict:
        pixels = {"auc": value, "interval": [value - 0.02, value + 0.02], "true_positives": None,
                  "distance_auc": 0.5, "control_auc": 0.5, "dreams_by_members": {"share": 0.5}}  # fmt: skip
        return {"distances": {"pixels": pixels}}

    (one,), (three,) = rows_of([audit(0.6)]), rows_of([audit(0.6), audit(0.55), audit(0.53)])
    assert one["AUC"] == "60.0 (58.0 to 62.0)" and three["AUC"] == "56.0 ± 3.6" and three["true positives"] == ""
    assert "(by pixels in 1 of 2 runs): they hold something of them" in verdict([audit(0.6), audit(0.51)])
    assert "not told" in verdict([audit(0.5), audit(0.51)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "RUN must be the folder of a run, got nowhere"),
        (["run", "--images", "0"], "--images must be 1 or more, got 0"),
        (["run", "--store", "empty"], "store must hold dreams/"),
        (["run", "verifier.weights=none.pt"], "verifier.weights: there is no file none.pt"),
        (["verifier.weights=none.pt"], "RUN must be the folder of a run, got options alone"),
    ],
)
def test_bad_input_is_refused(audited, finished, arguments, said):
    store = [] if "--store" in arguments else ["--store", str(finished / "artifacts")]
    done = command(["audit", *arguments, *store], audited, check=False)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_run_without_images_is_refused(audited, finished, tmp_path):
    shutil.copytree(audited / "run", tmp_path / "run")
    cfg = OmegaConf.load(tmp_path / "run" / "config.yaml")
    cfg.data = {"_target_": "dfkd.real_data.no_data"}
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
    done = command(["audit", "run", "--store", str(finished / "artifacts")], tmp_path, check=False)
    assert done.returncode == 1 and "data=none: an audit compares dreams with real images" in done.stderr
