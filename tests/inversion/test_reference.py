"""Parity with values and gradients that the published formulas give (shared/reference)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from published import PUBLISHED
from safetensors.torch import load_file
from torch import nn

from dfkd.inversion import InversionRecipe, inversion_objective, losses, optimise


def network(tensors: dict[str, torch.Tensor], role: str) -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    model = nn.Sequential(
        *block(3, 8, 1), *block(8, 16, 2), *block(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    model.load_state_dict(
        {key.removeprefix(f"{role}."): value for key, value in tensors.items() if key.startswith(f"{role}.")}
    )
    return model.eval()


@pytest.fixture
def reference(shared):
    return load_file(shared / "reference" / "inversion_losses.safetensors")


def recipe(**changes) -> InversionRecipe:
    zero = {"label_weight": 0.0, "feature_weight": 0.0, "tv_l2_weight": 0.0}
    plain = {"schedule": "constant", "jitter": 0, "flip": False, "clip": False}
    return InversionRecipe(**{**PUBLISHED, **zero, **plain, **changes})


TERMS = {
    "ce": recipe(label_weight=1.0),
    "r_feature": recipe(feature_weight=1.0),
    "r_feature_first10": recipe(feature_weight=1.0, first_layer_weight=10.0),
    "tv_l1": recipe(tv_l1_weight=1.0),
    "tv_l2": recipe(tv_l2_weight=1.0),
    "l2_batch": recipe(l2_weight=1.0),
    "l2_per_image_mean": recipe(l2_weight=1.0, l2_norm="image"),
    "compete": recipe(competition_weight=1.0),
    "total_cifar_adi": recipe(
        label_weight=1.0, feature_weight=10.0, tv_l2_weight=2.5e-5, l2_weight=3e-8, competition_weight=10.0
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_value_and_gradient_of_each_term(reference, name):
    x = reference["x"].clone().requires_grad_(True)
    teacher, student = network(reference, "teacher"), network(reference, "student")
    with inversion_objective(teacher, TERMS[name], student) as objective:
        total = objective(x, reference["y"])["total"]
        (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(total.detach(), reference[name].reshape(()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, reference[f"{name}.grad"], rtol=1e-4, atol=1e-6)


def test_ten_adam_steps_end_at_the_reference(reference):
    steps = {}
    for iterations in (1, 2, 11):
        settings = recipe(
            label_weight=1.0, feature_weight=10.0, tv_l2_weight=2.5e-5, l2_weight=3e-8, competition_weight=10.0,
            learning_rate=0.05, iterations=iterations, restarts=0,
        )  # fmt: skip
        teacher, student = network(reference, "teacher"), network(reference, "student")
        with inversion_objective(teacher, settings, student) as objective:
            steps[iterations] = optimise(reference["x"], reference["y"], objective, torch.Generator())
    # The loss falls at every step, so the best images of n + 1 iterations are those after n steps.
    # (The reference's `x_after_one_adam_step` holds the values after ten, so one step is checked by Adam's rule.)
    one_step = reference["x"] - 0.05 * reference["total_cifar_adi.grad"].sign()
    clear = reference["total_cifar_adi.grad"].abs() > 1e-5
    torch.testing.assert_close(steps[2].images[clear], one_step[clear], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(steps[11].images, reference["x_after_ten_adam_steps"], rtol=1e-3, atol=1e-4)
    assert steps[11].history[-1]["total"] == pytest.approx(reference["total_after_ten"].item(), rel=1e-4)


def test_priors_are_the_functions_of_the_losses_module(reference):
    x = reference["x"]
    torch.testing.assert_close(losses.total_variation_l2(x), reference["tv_l2"].reshape(()))
    torch.testing.assert_close(losses.total_variation_l1(x), reference["tv_l1"].reshape(()))
    teacher, student = network(reference, "teacher"), network(reference, "student")
    with torch.no_grad():
        compete = losses.competition(teacher(x), student(x))
        cross_entropy = F.cross_entropy(teacher(x), reference["y"])
    torch.testing.assert_close(compete, reference["compete"].reshape(()))
    torch.testing.assert_close(cross_entropy, reference["ce"].reshape(()))
