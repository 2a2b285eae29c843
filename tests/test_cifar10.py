"""The main job on real images: CIFAR-10 (JPEG), ResNet-20, 75 % sparsity. Half an hour; run by `make test-slow`."""

from __future__ import annotations

import json
import tarfile

import pytest
from conftest import command


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_resnet20_comes_back_from_75_percent_sparsity(shared, tmp_path):
    with tarfile.open(shared / "data" / "cifar10-jpeg.tar.xz") as archive:
        archive.extractall(tmp_path / "cifar10-jpeg", filter="data")
    options = [
        "experiment=image_folder_resnet20",
        f"data.root={tmp_path / 'cifar10-jpeg'}",
        f"teacher.weights={shared / 'teachers' / 'resnet20-cifar10-jpeg.safetensors'}",
    ]
    command([*options, "run_dir=real"], tmp_path, timeout=7000)
    result = json.loads((tmp_path / "real" / "result.json").read_text())
    print(json.dumps(result, indent=2))
    assert result["teacher"]["accuracy"] == pytest.approx(0.880, abs=0.001)
    assert result["pruned"]["accuracy"] == pytest.approx(0.53, abs=0.02)
    assert result["recovered"]["accuracy"] >= 0.85
    assert result["controls"]["noise"] < result["recovered"]["accuracy"] - 0.2
    assert result["controls"]["batchnorm"] < result["recovered"]["accuracy"] < result["teacher"]["accuracy"]

    # Without data the same artifacts serve: nothing real went into them.
    command([*options[::2], "data=none", "run_dir=none"], tmp_path, timeout=7000)
    without = json.loads((tmp_path / "none" / "result.json").read_text())
    assert {"teacher", "prune", "dream", "recover", "noise"} <= set(without["reused"])
    assert without["recovered"]["agreement"] == result["recovered"]["agreement"]
    assert without["recovered"]["accuracy"] is None
