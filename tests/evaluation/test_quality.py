"""Judging dreams: marks of banks whose marks are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY, command
from torch import nn
from torch.utils.data import TensorDataset

from dfkd.dreams import Dreams
from dfkd.errors import ConfigError
from dfkd.evaluation.quality import compare_with_real, dream_quality
from dfkd.models import InputSpec
from dfkd.tasks.experiment import Verifier

CPU = torch.device("cpu")
SPEC = InputSpec((1, 2, 2), 4, (0.0,), (1.0,))


class Reader(nn.Sequential):
    """Its logits are ten times the four pixels."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(4, 4, bias=False))
        self[1].weight.data = 10 * torch.eye(4)


def bank(labels: torch.Tensor, images: torch.Tensor | None = None) -> Dreams:
    images = torch.eye(4)[labels].view(-1, 1, 2, 2) if images is None else images
    return Dreams(images.half(), labels, labels, torch.ones(len(labels)))


def test_what_the_teacher_and_another_network_see():
    labels = torch.arange(8) % 4
    other = Reader()
    other[1].weight.data = other[1].weight.data[[1, 0, 2, 3]]  # takes 0 for 1 and 1 for 0
    marks = dream_quality(bank(labels), Reader(), other, SPEC, CPU)
    assert marks["teacher_accuracy"] == 1 and marks["verifier_accuracy"] == 0.5
    assert marks["teacher_confidence"] == pytest.approx(math.exp(10) / (math.exp(10) + 3))
    assert marks["class_balance"] == pytest.approx(1)
    # of the 28 pairs 4 are alike, the others lie a square's diagonal apart
    assert marks["diversity"] == pytest.approx(24 / 28 * math.sqrt(2), rel=1e-3)
    assert "verifier_accuracy" not in dream_quality(bank(labels), Reader(), None, SPEC, CPU)


def test_dreams_of_one_class_are_not_balanced_and_alike_ones_not_diverse():
    marks = dream_quality(bank(torch.zeros(6, dtype=torch.long)), Reader(), None, SPEC, CPU)
    assert marks["class_balance"] == pytest.approx(0) and marks["diversity"] == 0


def test_a_classifier_that_is_no_linear_layer_has_no_penultimate_features():
    network = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten())
    marks = dream_quality(bank(torch.arange(4)), network, None, SPEC, CPU)
    assert marks["diversity"] is None and 0 <= marks["teacher_accuracy"] <= 1


def test_dreams_with_statistics_of_their_own_change_the_answers_of_a_teacher_that_goes_by_them():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    network[2].weight.data = torch.eye(4)
    images, labels = torch.randn(300, 1, 2, 2), torch.arange(300) % 4
    near, far = (
        dream_quality(bank(labels, images + shift), network.eval(), None, SPEC, CPU)["statistics_agreement"]
        for shift in (0.0, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    )
    assert near > 0.9 and far < 0.5
    assert network[1].running_mean.abs().max() == 0 and not network[1].training
    assert dream_quality(bank(labels), Reader(), None, SPEC, CPU)["statistics_agreement"] is None


def test_dreams_are_nearest_to_the_images_they_are():
    images = torch.randn(300, 1, 2, 2)
    labels, network = torch.arange(300) % 4, Reader()
    far = {}
    for shift in (0.0, 1.0, 3.0):
        real = TensorDataset(images + shift, labels)
        far[shift] = compare_with_real(bank(labels, images), real, network, SPEC, CPU)
    assert far[0.0]["fid"] == pytest.approx(0, abs=1e-2) and far[0.0]["real_images"] == 300
    assert far[0.0]["fid"] < far[1.0]["fid"] < far[3.0]["fid"]
    assert far[0.0]["kid"] < far[1.0]["kid"] < far[3.0]["kid"]
    assert far[1.0]["fid"] == pytest.approx(4 * 1.0, rel=0.05)  # the squared distance of the means
    certain = compare_with_real(bank(labels), TensorDataset(images, labels), network, SPEC, CPU)
    assert certain["inception_score"] == pytest.approx(4, rel=0.05)  # four classes, each certain


def test_a_run_reports_what_another_network_sees_and_which_marks_used_real_images(tmp_path):
    for seed in (1, 0):
        command([*TINY, "stage=teacher", f"seed={seed}", f"store=store{seed}", f"run_dir=teacher{seed}"], tmp_path)
    other = next(Path(tmp_path).glob("store1/teacher/*/weights.safetensors"))
    verifier = [
        f"verifier.weights={other}",
        "verifier.extractor=verifier",
        "controls=[]",
        "store=store0",
        "run_dir=run",
    ]
    command([*TINY, *verifier], tmp_path)
    quality = json.loads((tmp_path / "run" / "result.json").read_text())["dreams"]["quality"]
    assert 0 <= quality["without_real_images"]["verifier_accuracy"] <= 1
    assert quality["with_real_images"]["extractor"] == "verifier" and quality["with_real_images"]["fid"] > 0
    assert quality["with_real_images"]["real_images"] == 360


def test_bad_settings_name_the_option_and_what_is_allowed():
    with pytest.raises(ConfigError, match=r"verifier\.extractor must be one of .*, or null, got 'resnet'"):
        Verifier(extractor="resnet")
    with pytest.raises(ConfigError, match=r"verifier\.weights=FILE"):
        Verifier(extractor="verifier")
