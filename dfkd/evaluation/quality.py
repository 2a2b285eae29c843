"""The quality of dreams: what teacher and verifier see in them, how they vary, how near they are to real images."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from dfkd.dreams import Dreams
from dfkd.errors import ModelError
from dfkd.models.batch_norm import batch_norm_layers
from dfkd.models.classifier import classifier_of
from dfkd.models.freezing import frozen
from dfkd.models.input_spec import InputSpec
from dfkd.seeding import derive_seed

EXTRACTORS = ("teacher", "verifier", "inception")
PAIRS = 1000  # dreams that the diversity is measured on
SUBSET = 1000  # images in each of KID's subsets
BATCH = 256


def dream_quality(
    dreams: Dreams, teacher: nn.Module, verifier: nn.Module | None, spec: InputSpec, device: torch.device
) -> dict[str, float | None]:
    """Metrics of dreams that need no real image. The networks are moved to `device`.

    Returns:
        `teacher_accuracy` and `teacher_confidence`: share of the dreams that the teacher gives their label, and the
        mean probability it gives it. `class_balance`: entropy of its predictions over all dreams, over the most that it
        can be, ln(classes) or of fewer dreams ln(dreams): 1 where every class is as frequent. `diversity`: mean
        Euclidean distance between the teacher's penultimate features of two dreams; None where its classifier is no
        linear layer. `statistics_agreement`: share of the dreams on which the teacher predicts the same when it
        normalises by their own statistics; 1 where they have those of the images that it learned from; None without
        batch norm, or for a single dream.
        `verifier_accuracy`, `verifier_confidence`: accuracy and confidence by the verifier, a network that was trained
        separately (cross-network verification, DI), where there is one.
    """
    labels = dreams.labels
    features, logits = _features_and_logits(teacher.to(device), dreams.images, spec)
    shares = logits.argmax(1).bincount(minlength=spec.num_classes).double() / len(labels)
    quality: dict[str, float | None] = {
        "teacher_accuracy": _accuracy(logits, labels),
        "teacher_confidence": _confidence(logits, labels),
        "class_balance": -torch.xlogy(shares, shares).sum().item()
        / math.log(max(2, min(spec.num_classes, len(labels)))),
        "diversity": None if features is None else _mean_distance(features),
        "statistics_agreement": _statistics_agreement(teacher, dreams.images, logits.argmax(1)),
    }
    if verifier is not None:
        _, logits = _features_and_logits(verifier.to(device), dreams.images, spec)
        quality |= {"verifier_accuracy": _accuracy(logits, labels), "verifier_confidence": _confidence(logits, labels)}
    return quality


def compare_with_real(
    dreams: Dreams,
    real: Dataset[Any],
    extractor: nn.Module | None,
    spec: InputSpec,
    device: torch.device,
    num_workers: int = 0,
) -> dict[str, float]:
    """FID and KID between dreams and real images, and the Inception score of the dreams, by torchmetrics.

    Args:
        dreams: what is compared.
        real: of (normalised image (C, H, W), label): test images.
        extractor: the network whose penultimate features and logits are used; None: Inception-v3, which torch-fidelity
            downloads. Values of different extractors cannot be compared.
        spec: the images' normalisation.
        device: where to compute; the extractor is moved there.
        num_workers: processes that read real images.

    Returns:
        `fid`, `kid`, `inception_score`, and `real_images`, their number.
    """

    def prepare(images: Tensor) -> Tensor:
        return (_bytes(images, spec) if extractor is None else images.float()).to(device)

    features: Any = 2048 if extractor is None else _Penultimate(extractor, spec)
    logits: Any = "logits_unbiased" if extractor is None else extractor
    subset = min(SUBSET, len(dreams), len(real))  # type: ignore[arg-type]
    with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(), frozen(extractor):
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        torch.manual_seed(derive_seed(0, "subsets of KID"))
        fid = FrechetInceptionDistance(feature=features).to(device)
        kid = KernelInceptionDistance(feature=features, subset_size=subset).to(device)
        score = InceptionScore(feature=logits).to(device)
        for images, _ in DataLoader(real, batch_size=BATCH, num_workers=num_workers):
            for metric in (fid, kid):
                metric.update(prepare(images), real=True)
        for images in dreams.images.split(BATCH):
            for metric in (fid, kid):
                metric.update(prepare(images), real=False)
            score.update(prepare(images))
        return {
            "fid": fid.compute().item(),
            "kid": kid.compute()[0].item(),
            "inception_score": score.compute()[0].item(),
            "real_images": len(real),  # type: ignore[arg-type]
        }


class _Penultimate(nn.Module):
    """What the last linear layer of a classifier is given."""

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self.num_features = classifier_of(network, spec.num_classes, spec.image_shape)[1].in_features

    def forward(self, images: Tensor) -> Tensor:
        with _penultimate(self.network, self.spec) as seen:
            self.network(images)
        return seen[0]


@contextmanager
def _penultimate(network: nn.Module, spec: InputSpec) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    layer = classifier_of(network, spec.num_classes, spec.image_shape)[1]
    handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().flatten(1)))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def _features_and_logits(network: nn.Module, images: Tensor, spec: InputSpec) -> tuple[Tensor | None, Tensor]:
    """Penultimate features (N, D), None where the classifier is no linear layer, and logits (N, classes)."""
    device = next(network.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(frozen(network))
        seen: list[Tensor] = []
        with contextlib.suppress(ModelError):
            seen = stack.enter_context(_penultimate(network, spec))
        logits = [network(part.to(device).float()) for part in images.split(BATCH)]
    return torch.cat(seen).cpu() if seen else None, torch.cat(logits).cpu()


def features_of(network: nn.Module, images: Tensor, spec: InputSpec) -> Tensor:
    """The penultimate features (N, D) of normalised images, on the CPU; `spec.num_classes` are the network's outputs.

    Raises:
        ModelError: the network's classifier is no linear layer.
    """
    classifier_of(network, spec.num_classes, spec.image_shape)  # refuses a network that has none
    return cast(Tensor, _features_and_logits(network, images, spec)[0])


def _mean_distance(features: Tensor) -> float:
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(derive_seed(0, "diversity")))
    return torch.pdist(features[order[:PAIRS]]).mean().item() if len(features) > 1 else 0.0


@torch.no_grad()
def _statistics_agreement(teacher: nn.Module, images: Tensor, predictions: Tensor) -> float | None:
    device = next(teacher.parameters()).device
    live = copy.deepcopy(teacher).eval()
    layers = batch_norm_layers(live)
    if not layers or len(images) < 2:
        return None
    for layer in layers.values():
        layer.train()
    parts = images.chunk(math.ceil(len(images) / BATCH))  # of one size, so that none is too small for statistics
    given = torch.cat([live(part.to(device).float()).argmax(1).cpu() for part in parts])
    return (given == predictions).double().mean().item()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def _confidence(logits: Tensor, labels: Tensor) -> float:
    return logits.softmax(1).gather(1, labels[:, None]).double().mean().item()


def _bytes(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images as three channels of bytes, as Inception-v3 takes them."""
    pixels = spec.to_pixels(images)
    pixels = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (255 * pixels).round().byte()
