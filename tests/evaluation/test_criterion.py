"""The criterion that chooses a student without a real image."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dfkd.evaluation.criterion import distances, nearest, unseen_pictures
from dfkd.pruning import prune_by_global_magnitude


def pictures_for(spec, seed: int = 0) -> torch.Tensor:
    return unseen_pictures(spec.image_shape, *spec.valid_range(), seed)


def test_the_more_is_pruned_the_farther_and_the_teacher_itself_is_at_no_distance(teacher, spec):
    students = {f"{amount:.0%}": copy.deepcopy(teacher) for amount in (0.9, 0.5, 0.0)}
    for amount, student in zip((0.9, 0.5, 0.0), students.values(), strict=True):
        prune_by_global_magnitude(student, amount)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    found = distances(students, teacher, pictures_for(spec), torch.device("cpu"))
    assert found["90%"]["distance"] > found["50%"]["distance"] > found["0%"]["distance"] == pytest.approx(0, abs=1e-6)
    assert all(each["low"] <= each["distance"] <= each["high"] for each in found.values())
    assert nearest(found) == "0%"
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_a_student_without_finite_numbers_is_never_chosen(teacher, spec):
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    found = distances({"pruned": teacher, "broken": broken}, teacher, pictures_for(spec), torch.device("cpu"))
    assert nearest(found) == "pruned"


def test_answers_that_are_sure_and_wrong_weigh_as_much_as_others_that_are_wrong():
    class Says(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits))

        def forward(self, images):
            return self.logits.expand(len(images), -1)

    networks = {"sure": Says([30.0, 0.0]), "surer": Says([3000.0, 0.0]), "alike": Says([0.0, 30.0])}
    found = distances(networks, Says([0.0, 30.0]), torch.zeros(4, 1, 2, 2), torch.device("cpu"))
    assert found["sure"]["distance"] == pytest.approx(found["surer"]["distance"]) == pytest.approx(1)
    assert found["alike"]["distance"] == pytest.approx(0)


def test_of_equals_the_one_that_learned_is_chosen():
    found = {"pruned": {"distance": 0.5}, "batchnorm": {"distance": 0.2}, "distilled": {"distance": 0.2}}
    assert nearest(found) == "distilled"


def test_pictures_are_of_the_seed_and_in_the_networks_range(spec):
    pictures = pictures_for(spec)
    low, high = spec.valid_range()
    assert pictures.shape[1:] == spec.image_shape and (pictures >= low).all() and (pictures <= high).all()
    assert torch.equal(pictures, pictures_for(spec)) and not torch.equal(pictures, pictures_for(spec, 1))
