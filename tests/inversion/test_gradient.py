"""The fast step is the plain formulation: for every architecture, in parts, compiled, and where it has to fall back."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import large_ones_are_slow
from published import PUBLISHED, PublishedInversion
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


@pytest.mark.parametrize("name", large_ones_are_slow(SMALL_ZOO))
def test_50_iterations_give_the_losses_and_images_of_the_published_formulation(name):
    # In double precision: single precision's rounding is amplified by ReLUs and Adam within some ten iterations.
    teacher = lived_in(SMALL_ZOO[name]().double(), 3, 32, 32)
    recipe = InversionRecipe(**PUBLISHED, iterations=50, learning_rate=0.05, schedule="constant")
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


class Block(nn.Module):
    """Pre-activation, in-place residual, depthwise and concatenation around a given batch norm."""

    def __init__(self, batch_norm: type[nn.Module]):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.first = batch_norm(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.second = batch_norm(6)
        self.joined = batch_norm(12)
        self.linear = nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.second(self.depthwise(F.relu_(self.first(x))))
        y += x
        y = F.relu_(self.first(y))  # used twice
        return self.linear(self.joined(torch.cat([x, y], 1)).relu().mean((2, 3)))


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 1.5


class WithoutAffine(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, affine=False)


@pytest.mark.parametrize("batch_norm", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, OwnForward, WithoutAffine])
def test_unusual_networks_get_the_gradient_that_autograd_gives(batch_norm, caplog):
    model = Block(batch_norm).double().eval()
    for layer in (model.first, model.second, model.joined):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    images, labels = torch.randn(5, 3, 8, 8, dtype=torch.double), torch.arange(5)
    expected = reference_gradient(model, images, labels)
    with caplog.at_level(logging.INFO, "dfkd"), inversion_objective(model, InversionRecipe(**PUBLISHED)) as objective:
        _, gradient = ObjectiveGradient(objective)(images, labels)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    falls_back = batch_norm in (FrozenBatchNorm2d, OwnForward)
    assert len([r for r in caplog.records if "forward of their own" in r.message]) == falls_back
    torch.testing.assert_close(reference_gradient(model, images, labels), expected)  # nothing stayed on the model


def reference_gradient(model, images, labels):
    """The published objective by hooks and autograd alone; a layer used twice has the mean of its uses."""
    uses: dict[nn.Module, list] = {}

    def measure(layer, inputs):
        x = inputs[0]
        uses.setdefault(layer, []).append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))

    layers = [layer for layer in model.modules() if hasattr(layer, "running_mean")]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    leaf = images.clone().requires_grad_(True)
    loss = F.cross_entropy(model(leaf), labels)
    for layer, pairs in uses.items():
        mean, variance = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        loss = loss + 10 * ((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
    differences = (
        leaf[..., 1:] - leaf[..., :-1],
        leaf[..., 1:, :] - leaf[..., :-1, :],
        leaf[..., 1:, 1:] - leaf[..., :-1, :-1],
        leaf[..., 1:, :-1] - leaf[..., :-1, 1:],
    )
    loss = loss + 2.5e-5 * sum(difference.norm() for difference in differences)
    for hook in hooks:
        hook.remove()
    return torch.autograd.grad(loss, leaf)[0]


@pytest.fixture
def network() -> nn.Module:
    return lived_in(CifarResNet(8, width=4), 3, 16, 16)


@pytest.mark.parametrize("form", ["norm", "divergence"])
@pytest.mark.parametrize("parts", [2, 3, 10])
def test_a_batch_in_parts_has_the_same_terms_and_gradient(network, parts, form):
    student = lived_in(CifarResNet(8, width=4), 3, 16, 16).double()
    images, labels = torch.randn(10, 3, 16, 16, dtype=torch.double), torch.arange(10)
    recipe = InversionRecipe(
        iterations=12, tv_l2_weight=1e-3, tv_l1_weight=0.1, l2_weight=1e-3, competition_weight=2.0, feature_form=form
    )
    with inversion_objective(network.double(), recipe, student) as objective:
        terms, gradient = ObjectiveGradient(objective)(images, labels)
        parts_terms, parts_gradient = ObjectiveGradient(objective, parts=parts)(images, labels)
    assert terms.keys() == parts_terms.keys()
    for name in terms:
        torch.testing.assert_close(parts_terms[name], terms[name], rtol=1e-10, atol=0)
    torch.testing.assert_close(parts_gradient, gradient, rtol=1e-8, atol=1e-12)


class Limited(nn.Module):
    """A network whose memory ends at `limit` images."""

    def __init__(self, network: nn.Module, limit: int):
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.network(x)


def test_where_memory_runs_out_the_batch_goes_in_parts_and_the_dreams_are_the_same(network, caplog):
    recipe = InversionRecipe(iterations=12, restarts=0)
    start, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    images = {}
    for limit in (16, 5):
        with inversion_objective(Limited(network, limit), recipe) as objective:
            images[limit] = optimise(start, labels, objective, torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(images[5], images[16], rtol=0, atol=1e-3)
    said = [record.message for record in caplog.records if "Memory ran out" in record.message]
    assert len(said) == 2 and "4 parts" in said[-1]


def test_a_network_without_memory_for_one_image_is_an_error(network):
    with (
        inversion_objective(Limited(network, 0), InversionRecipe()) as objective,
        pytest.raises(InversionError, match="Memory ran out even for a single image"),
    ):
        ObjectiveGradient(objective)(torch.randn(4, 3, 16, 16), torch.arange(4))


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@needs_compiler
def test_compiled_gives_the_same_images_and_jitter_never_recompiles(network):
    # At the published step: a larger one amplifies the rounding in which the two differ.
    recipe = InversionRecipe(**PUBLISHED, iterations=12, flip=True, learning_rate=0.05)
    start, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    images = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with inversion_objective(network, recipe) as objective:
        for gradient in (ObjectiveGradient(objective), ObjectiveGradient(objective, compiled_batch=16)):
            images.append(optimise(start, labels, gradient, torch.Generator().manual_seed(0)).images)
        assert gradient.compiled is not None
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        optimise(start[:5], labels[:5], gradient, torch.Generator())  # another size goes uncompiled
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-3)


@needs_compiler
def test_a_depthwise_network_compiles_in_bfloat16_too(caplog):
    torch.manual_seed(0)
    network = lived_in(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    ), 3, 16, 16)  # fmt: skip
    start, labels, found = torch.randn(16, 3, 16, 16), torch.arange(16) % 10, []
    torch._dynamo.reset()
    with inversion_objective(network, InversionRecipe()) as objective, torch.autocast("cpu", torch.bfloat16):
        for gradient in (ObjectiveGradient(objective), ObjectiveGradient(objective, compiled_batch=16)):
            found.append(gradient(start, labels)[1])
        assert gradient.compiled is not None
    assert not [record for record in caplog.records if "cannot be compiled" in record.message]
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.02 * found[0].abs().max().item())


class Uncompilable(nn.Module):
    """A network that looks at its values, so that no single graph can be captured."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits = self.network(x)
        return logits if logits.sum().item() > -1e9 else -logits


def test_what_cannot_be_compiled_runs_uncompiled_and_says_so_once(network, caplog):
    recipe = InversionRecipe(iterations=4)
    start, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    images = []
    with inversion_objective(Uncompilable(network), recipe) as objective:
        for gradient in (ObjectiveGradient(objective), ObjectiveGradient(objective, compiled_batch=8)):
            images.append(optimise(start, labels, gradient, torch.Generator().manual_seed(0)).images)
    assert torch.equal(images[0], images[1])
    assert len([record for record in caplog.records if "cannot be compiled" in record.message]) == 1


def test_compiling_is_for_long_jobs_only():
    small, large = CifarResNet(8, width=4).eval(), CifarResNet(20).eval()
    with inversion_objective(small, InversionRecipe()) as objective:
        assert not worth_compiling(objective, torch.zeros(16, 3, 16, 16), iterations=200)
    with inversion_objective(large, InversionRecipe()) as objective:
        images = torch.zeros(256, 3, 32, 32)
        assert not worth_compiling(objective, images, iterations=50)
        assert worth_compiling(objective, images, iterations=8000)
        assert worth_compiling(objective, images, iterations=500)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # where the plain way is quick
            assert not worth_compiling(objective, images, iterations=500)
            assert worth_compiling(objective, images, iterations=8000)
        assert all(not record for record in objective.records.values())


def test_the_memory_format_of_the_gradient_does_not_matter(network):
    # Compiled code may give a channels-last gradient for images of the usual format; fused Adam would mix them up.
    class ChannelsLast(ObjectiveGradient):
        def __call__(self, images, labels):
            terms, gradient = super().__call__(images, labels)
            return terms, gradient.contiguous(memory_format=torch.channels_last)

    start, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    with inversion_objective(network, InversionRecipe(iterations=5)) as objective:
        images = [
            optimise(start, labels, kind(objective), torch.Generator().manual_seed(0)).images
            for kind in (ObjectiveGradient, ChannelsLast)
        ]
    assert torch.equal(images[0], images[1])
