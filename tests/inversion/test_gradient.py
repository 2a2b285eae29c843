"""The fast step is the plain formulation: for every architecture, in parts, compiled, and where it has to fall back."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
import torch.nn.functional as F
from published import PublishedInversion
from torch import nn
from torchvision.models import DenseNet, vgg
from torchvision.ops import FrozenBatchNorm2d

from dfkd.errors import InversionError
from dfkd.inversion import InversionRecipe, inversion_objective, optimise
from dfkd.inversion.gradient import ObjectiveGradient, worth_compiling
from dfkd.models import CifarResNet, WideResNet, torchvision_model



def narrow_vgg(configuration: str) -> nn.Module:
    widths = [width if width == "M" else width // 8 for width in vgg.cfgs[configuration]]
    features = vgg.make_layers(widths, batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(64, 10))


SMALL_ZOO = {
    "resnet20": lambda: CifarResNet(20, width=4),
    "wrn_16_2": lambda: WideResNet(16, 1),
    "resnet18": lambda: torchvision_model("resnet18", 10),
    "resnet34": lambda: torchvision_model("resnet34", 10),
    "resnet50": lambda: torchvision_model("resnet50", 10, width_per_group=8),
    "wide_resnet50_2": lambda: torchvision_model("resnet50", 10, width_per_group=16),
    "mobilenet_v2": lambda: torchvision_model("mobilenet_v2", 10, width_mult=0.35),
    "vgg11_bn": lambda: narrow_vgg("A"),
    "vgg19_bn": lambda: narrow_vgg("E"),
    "densenet121": lambda: DenseNet(8, (6, 12, 24, 16), 16, num_classes=10),
    "shufflenet_v2_x1_0": lambda: torchvision_model("shufflenet_v2_x0_5", 10),
}


def lived_in(model: nn.Module, *shape: int) -> nn.Module:
    """The model in eval mode, with running statistics that are not those of its initialisation."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, *shape, dtype=next(model.parameters()).dtype))
    return model.eval()


@pytest.mark.parametrize("name", SMALL_ZOO)
def test_50_iterations_give_the_losses_and_images_of_the_published_formulation(name):
    # In double precision: single precision's rounding is amplified by ReLUs and Adam within some ten iterations.
    teacher = lived_in(SMALL_ZOO[name]().double(), 3, 32, 32)
    recipe = InversionRecipe(iterations=50, learning_rate=0.05, schedule="constant")
    start = torch.randn(4, 3, 32, 32, dtype=torch.double)
    labels = torch.arange(4)
    losses: list[float] = []
    with inversion_objective(teacher, recipe) as objective:
        result = optimise(start, labels, recorded(objective, losses), torch.Generator().manual_seed(1))
    published = PublishedInversion(teacher, start, labels, recipe, torch.Generator().manual_seed(1))
    expected = [published.step() for _ in range(50)]
    assert expected[-1] < expected[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(result.images, published.best_images, rtol=0, atol=1e-4)


def recorded(objective, losses: list[float]) -> ObjectiveGradient:
    class Recording(ObjectiveGradient):
        def __call__(self, images, labels):
            terms, gradient = super().__call__(images, labels)
            losses.append(terms["total"].item())
            return terms, gradient

    return Recording(objective)
