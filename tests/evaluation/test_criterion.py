"""The criterion that chooses a student without a real image."""

from __future__ import annotations

import copy

import pytest
import torch

from dfkd.evaluation.criterion import distances, nearest, unseen_pictures
from dfkd.pruning import prune_by_global_magnitude


def test_the_more_is_pruned_the_farther_and_the_teacher_itself_is_at_no_distance(teacher, spec):
    students = {f"{amount:.0%}": copy.deepcopy(teacher) for amount in (0.9, 0.5, 0.0)}
    for amount, student in zip((0.9, 0.5, 0.0), students.values(), strict=True):
        prune_by_global_magnitude(student, amount)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    found = distances(students, teacher, unseen_pictures(spec.image_shape, *spec.valid_range(), 0), torch.device("cpu"))
    assert found["90%"]["kl"] > found["50%"]["kl"] > found["0%"]["kl"] == pytest.approx(0, abs=1e-9)
    assert all(each["low"] <= each["kl"] <= each["high"] for each in found.values())
    assert nearest(found) == "0%"
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_a_student_without_finite_numbers_is_never_chosen(teacher, spec):
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    found = distances(
        {"pruned": teacher, "broken": broken},
        teacher,
        unseen_pictures(spec.image_shape, *spec.valid_range(), 0),
        torch.device("cpu"),
    )
    assert nearest(found) == "pruned"


def test_of_equals_the_one_that_learned_is_chosen():
    assert nearest({"pruned": {"kl": 0.5}, "batchnorm": {"kl": 0.2}, "distilled": {"kl": 0.2}}) == "distilled"


def test_pictures_are_of_the_seed_and_in_the_networks_range(spec):
    pictures = unseen_pictures(spec.image_shape, *spec.valid_range(), 0)
    low, high = spec.valid_range()
    assert pictures.shape[1:] == spec.image_shape and (pictures >= low).all() and (pictures <= high).all()
    assert torch.equal(pictures, unseen_pictures(spec.image_shape, *spec.valid_range(), 0)) and not torch.equal(
        pictures, unseen_pictures(spec.image_shape, *spec.valid_range(), 1)
    )
