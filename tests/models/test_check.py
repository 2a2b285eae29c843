"""What no network here can have is refused before the work, with the remedy; what looks odd and is right passes."""

from __future__ import annotations

import copy
import re
import threading

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import dfkd
from dfkd.errors import ConfigError, ModelError
from dfkd.models import InputSpec
from dfkd.models.check import check_network
from dfkd.pruning import layer_sparsity, prune_by_global_magnitude, sparsity

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """A small classifier, whose parts subclasses change."""

    def __init__(self, classes: int = 5, normalised: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), normalised(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), normalised(4)
        self.fc = nn.Linear(4, classes)

    def features(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x))).mean((2, 3))

    def forward(self, x):
        return self.end(self.fc(self.features(x)))

    def end(self, logits):
        return logits


def ending(end):
    return type("Ending", (Net,), {"end": staticmethod(end)})()


def beginning(begin):
    return type("Beginning", (Net,), {"forward": lambda self, x: Net.forward(self, begin(x))})()


class InTraining(Net):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class OtherClassesInTraining(Net):
    def forward(self, x):
        logits = super().forward(x)
        return torch.cat([logits, logits], 1) if self.training else logits


class TwoInputs(Net):
    def forward(self, x, mask):
        return super().forward(x * mask)


class Checkpointing(Net):
    def forward(self, x):
        if self.training:
            return self.fc(checkpoint(self.features, x.requires_grad_(), use_reentrant=False))
        return super().forward(x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, padding=1)


class Uncopied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Squeezes(Net):
    def features(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.adaptive_avg_pool2d(x, 1).squeeze()


class InPlace(Net):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


class NotDifferentiable(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class BreaksBackward(Net):
    def forward(self, x):
        logits = super().forward(x)
        if self.training:
            self.fc.weight.data.add_(0)
            y = torch.sigmoid(logits)
            loss = y * 2
            y.add_(1)
            return loss
        return logits


def with_layer(layer):
    model = Net()
    model.conv2 = layer
    return model


def with_value(name, value):
    model = Net()
    with torch.no_grad():
        model.get_submodule(name.rpartition(".")[0]).state_dict()[name.rpartition(".")[2]].view(-1)[1] = value
    return model


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def pruned_by_torch(parameter="weight"):
    model = Net()
    module = model.fc if parameter == "bias" else model.conv2
    torch_prune.l1_unstructured(module, parameter, 0.5)
    return model


def weight_of_a_buffer():
    model = Net()
    weight = model.conv2.weight.detach()
    del model.conv2.weight
    model.conv2.register_buffer("weight", weight)
    return model


REFUSED = {
    "softmax": (lambda: ending(lambda z: z.softmax(1)), r"ends in softmax.*Leave the last step out"),
    "softmax module": (lambda: nn.Sequential(Net(), nn.Softmax(dim=1)), "ends in softmax"),
    "exponentials of log softmax": (lambda: ending(lambda z: z.log_softmax(1).exp()), "ends in softmax"),
    "sigmoid": (lambda: nn.Sequential(Net(), nn.Sigmoid()), "ends in sigmoid"),
    "a single logit": (lambda: Net(1), r"single logit.*torch.stack\(\[torch.zeros_like\(z\), z\], 1\)"),
    "a flat single logit": (lambda: ending(lambda z: z[:, 0]), "single logit"),
    "a tuple": (lambda: ending(lambda z: (z[:, :, None], z)), r"a tuple of \(2, 5, 1\), \(2, 5\).*\(x\)\[1\]"),
    "a mapping": (lambda: ending(lambda z: {"logits": z, "loss": None}), r"a dict of logits: .*\(x\)\['logits'\]"),
    "maps of logits": (lambda: ending(lambda z: z[:, :, None, None]), r"got \(2, 5, 1, 1\)"),
    "rows of another batch": (lambda: ending(lambda z: torch.cat([z, z])), r"got \(4, 5\) for 2 images"),
    "classes and no logits": (lambda: ending(lambda z: z.argmax(1, keepdim=True).expand(-1, 3)), "int64 values"),
    "logits that are not finite": (lambda: ending(lambda z: z / 0), "not finite"),
    "two outputs in training": (InTraining, r"gives a tuple .* in training mode.*aux_logits=False"),
    "other classes in training": (OtherClassesInTraining, r"gives \(2, 10\) in training mode"),
    "two inputs": (TwoInputs, "cannot be called with images alone"),
    "another input": (lambda: beginning(lambda x: x[:, :0]), r"cannot take images of input.image_shape=\[1, 8, 8\]"),
    "in place": (InPlace, "changes its input in place"),
    "without a gradient": (NotDifferentiable, "gives no gradient"),
    "detached": (lambda: beginning(lambda x: x.detach()), "gives no gradient"),
    "rounded": (lambda: beginning(lambda x: x.byte().float()), "gives no gradient"),
    "a single image squeezed": (Squeezes, r"for a single image, got \(5,\).*squeeze\(\)"),
    "no single image": (lambda: beginning(lambda x: x.view(2, -1, 8, 8)), "not one alone"),
    "checkpoints": (Checkpointing, "gradient checkpointing"),
    "a broken backward": (BreaksBackward, "cannot be trained, as a student is"),
    "no copies": (Uncopied, r"cannot be copied by `copy.deepcopy` \(TypeError.*locks"),
    "lazy layers": (lazy, r"lazy or meta parameters without values: 0.weight"),
    "meta parameters": (lambda: Net().to("meta"), "lazy or meta"),
    "double precision": (lambda: Net().double(), r"not in single precision: conv1.weight \(torch.float64\)"),
    "half precision": (lambda: Net().half(), r"model.float\(\)"),
    "NaN": (lambda: with_value("fc.bias", torch.nan), r"not finite .*: fc.bias"),
    "an infinite statistic": (lambda: with_value("bn2.running_var", torch.inf), "bn2.running_var"),
    "a negative variance": (lambda: with_value("bn1.running_var", -1), "bn1.running_var, below 0"),
    "standardised weights": (lambda: with_layer(Standardised(4, 4, 3, bias=False)), "compute with another"),
    "weight_norm": (lambda: with_layer(parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))),
                    r"conv2 is parametrised \(WeightNorm\).*remove_parametrizations\(.*'weight'\)"),
    "spectral_norm": (lambda: with_layer(parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))), "parametrised"),
    "orthogonal": (lambda: with_layer(parametrizations.orthogonal(nn.Conv2d(4, 4, 1))), r"\(Orthogonal\)"),
    "old spectral_norm": (lambda: with_layer(nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1))),
                          r"computed by spectral_norm.*remove_spectral_norm\("),
    "masks": (pruned_by_torch, r"conv2 is masked by torch.nn.utils.prune.*prune.remove\("),
    "masks of a bias": (lambda: pruned_by_torch("bias"), r"The bias of layer fc is masked"),
    "a weight in a buffer": (weight_of_a_buffer, r"conv2 is no torch.nn.Parameter"),
    "DataParallel": (lambda: nn.DataParallel(Net()), r"wrapped in DataParallel.*`model.module`"),
    "an average of weights": (lambda: torch.optim.swa_utils.AveragedModel(Net()), "wrapped in AveragedModel"),
    "compiled": (lambda: torch.compile(Net()), r"wrapped in OptimizedModule.*`model._orig_mod`"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_go_wrong_is_refused_with_the_remedy(case):
    build, message = REFUSED[case]
    with pytest.raises(ModelError, match=re.compile(message, re.DOTALL)):
        check_network(build().eval(), SHAPE)


def test_old_weight_norm_is_refused_though_it_cannot_be_copied():
    with pytest.warns(FutureWarning):
        model = with_layer(torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)))
    with pytest.raises(ModelError, match=r"computed by weight_norm.*remove_weight_norm\("):
        check_network(model, SHAPE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused():
    with pytest.raises(ModelError, match="TorchScript"):
        check_network(torch.jit.trace(Net().eval(), torch.zeros(1, *SHAPE)), SHAPE)


class OutOfOrder(Net):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        other = Net()
        for name in ("fc", "bn2", "bn1", "conv2", "conv1"):
            self.add_module(name, getattr(other, name))


PASSES = {
    "plain": Net,
    "two classes whose logits are all positive": lambda: ending(lambda z: z.abs()),
    "logarithms of probabilities": lambda: ending(lambda z: z.log_softmax(1)),
    "zeros for logits": lambda: ending(lambda z: z * 0),
    "a view": lambda: beginning(lambda x: x.view(len(x), 1, 8, 8)),
    "modules out of order": OutOfOrder,
    "no gradient asked for": lambda: Net().requires_grad_(False),
    "batch norm in training mode": lambda: Net().train(),
    "batch norm without momentum": lambda: Net(normalised=lambda c: nn.BatchNorm2d(c, momentum=None)),
    "batch norm without affine": lambda: Net(normalised=lambda c: nn.BatchNorm2d(c, affine=False)),
    "SyncBatchNorm": lambda: Net(normalised=nn.SyncBatchNorm),
    "a lazy network that saw a batch": lambda: seen(lazy()),
    "a subclass of a convolution": lambda: with_layer(type("Mine", (nn.Conv2d,), {})(4, 4, 3, padding=1)),
    "a forward of its own": lambda: with_layer(
        type("Mine", (nn.Conv2d,), {"forward": lambda self, x: F.conv2d(x, self.weight, self.bias, 1, 1)})(4, 4, 3)
    ),
}


def seen(model):
    model(torch.zeros(2, *SHAPE))
    return model


@pytest.mark.parametrize("case", PASSES)
def test_what_is_right_passes_and_stays_as_it_was(case):
    model = PASSES[case]()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    asked, modes = [p.requires_grad for p in model.parameters()], [module.training for module in model.modules()]
    assert check_network(model, SHAPE) == 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert asked == [p.requires_grad for p in model.parameters()]
    assert modes == [module.training for module in model.modules()] and torch.equal(random, torch.get_rng_state())
    assert all("forward" not in vars(m) and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


class AlwaysDrops(Net):
    def features(self, x):
        return F.dropout(super().features(x), 0.5)


class OfTheBatch(Net):
    def features(self, x):
        return super().features(x - x.mean())


class OwnProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.kernel, padding=1)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (AlwaysDrops, r"other logits for the same images each time"),
        (OfTheBatch, r"other logits where others are in the batch"),
        (lambda: with_layer(OwnProduct()), r"stay dense.*: conv2.kernel \(144\)"),
    ],
)
def test_what_is_doubtful_is_said(build, said, caplog):
    check_network(build().eval(), SHAPE)
    assert re.search(said, caplog.text)


def test_the_check_comes_before_the_inversion():
    with pytest.raises(ModelError, match="not finite"):
        dfkd.invert(with_value("fc.bias", torch.nan), 4, image_shape=SHAPE)


@pytest.mark.parametrize("case", ["weight_norm", "spectral_norm", "old spectral_norm", "masks", "a weight in a buffer"])
def test_networks_that_compute_their_weights_are_neither_pruned_nor_counted(case):
    model = REFUSED[case][0]().eval()
    for use in (lambda model: prune_by_global_magnitude(model, 0.5), sparsity, layer_sparsity):
        with pytest.raises(ModelError, match="zeros would not be those"):
            use(model)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.conv3.weight = self.conv2.weight

    def features(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv3(self.conv2(x)))).mean((2, 3))


@pytest.mark.parametrize("amount", [0.3, 0.5, 0.9])
def test_tied_weights_are_counted_and_pruned_once(amount):
    teacher = Tied().eval()
    assert check_network(teacher, SHAPE) == 5
    assert [layer.layer for layer in layer_sparsity(teacher)] == ["conv1", "conv2", "fc"]
    student = dfkd.prune(teacher, amount)
    weights = [student.conv1.weight, student.conv2.weight, student.fc.weight]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(amount * sum(weight.numel() for weight in weights)) == round(sparsity(student) * 200)
    assert student.conv2.weight is student.conv3.weight


@pytest.mark.parametrize(
    ("mean", "std", "option"),
    [((77.8,), (95.9,), "mean"), ((0.3,), (58.0,), "std"), ((123.7,), (1.0,), "mean"), ((-0.1,), (1.0,), "mean"),
     ((float("nan"),), (1.0,), "mean"), ((0.5,), (float("nan"),), "std")],
)  # fmt: skip
def test_a_normalisation_of_pixels_from_0_to_255_is_refused(mean, std, option):
    with pytest.raises(ConfigError, match=rf"input\.{option} must be .*divide by 255"):
        InputSpec(SHAPE, 5, mean, std)
    InputSpec((3, 8, 8), 5, (103.5 / 255, 0.0, 1.0), (1 / 255, 0.5, 1.0))
