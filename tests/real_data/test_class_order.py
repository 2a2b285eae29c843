"""A teacher that is sure and wrong: in which order its classes seem to be, or that something else does not fit."""

from __future__ import annotations

import pytest
import torch

from dfkd.real_data.class_order import doubt, likely_order


def logits_of(classes, num_classes, scale=8.0):
    return scale * torch.nn.functional.one_hot(classes, num_classes).float() + torch.randn(len(classes), num_classes)


@pytest.mark.parametrize("right", [1.0, 0.8])
@pytest.mark.parametrize("num_classes", [2, 5, 100])
def test_the_order_that_fits_is_found(num_classes, right):
    meant = torch.randperm(num_classes)  # the teacher's class of each label
    if num_classes == 2:
        meant = torch.tensor([1, 0])
    labels = torch.arange(num_classes).repeat(20)
    predictions = torch.where(torch.rand(len(labels)) < right, meant[labels], torch.randint(num_classes, labels.shape))
    order = likely_order(predictions, labels, num_classes)
    assert order == meant.argsort().tolist()
    text = doubt(logits_of(predictions, num_classes), labels, [f"name{k}" for k in range(num_classes)])
    assert f"data.only=[{','.join(map(str, order))}]" in text and f"(name{order[0]}, name{order[1]}" in text
    only = [3 * number + 1 for number in range(num_classes)]  # of a data set with more classes
    text = doubt(logits_of(predictions, num_classes), labels, only=only)
    assert f"data.only=[{','.join(str(only[place]) for place in order)}]" in text


@pytest.mark.parametrize("right", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_teacher_that_is_only_bad_is_given_no_order(num_classes, right):
    labels = torch.arange(num_classes).repeat(40)
    predictions = torch.where(torch.rand(len(labels)) < right, labels, torch.randint(num_classes, labels.shape))
    assert likely_order(predictions, labels, num_classes) is None


def test_few_images_tell_nothing():
    labels = torch.arange(10)
    assert likely_order(9 - labels, labels, 10) is None and doubt(logits_of(9 - labels, 10), labels) is None


def test_chance_with_confidence_is_doubted_and_chance_without_is_not():
    labels = torch.arange(10).repeat(20)
    assert "about what chance gives" in doubt(logits_of(torch.zeros_like(labels), 10), labels)
    assert doubt(logits_of(torch.randint(10, labels.shape), 10, scale=0.0), labels) is None
    assert doubt(logits_of(labels, 10), labels) is None
