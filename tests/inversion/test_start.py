"""What an inversion starts from: published noise, procedural pictures that suit their labels, or earlier dreams."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from dfkd.dreams import Dreams
from dfkd.errors import ConfigError
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.start import best_candidates, start_images
from dfkd.models import CifarResNet
from dfkd.procedural import pictures
from dfkd.training.fit import TrainerOptions, Workplace

LABELS = torch.arange(10)


def start(spec, teacher, seed=0, earlier=None, **changes):
    generator = torch.Generator().manual_seed(seed)
    return start_images(InversionRecipe(**changes), LABELS, spec, seed, generator, teacher, earlier)


def test_noise_is_what_the_batchs_generator_gives_first(spec, teacher):
    expected = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(start(spec, teacher, seed=3, start="noise"), expected)


def test_procedural_pictures_are_normalised_as_the_network_takes_them(spec, teacher):
    images = start(spec, teacher, start="procedural", start_candidates=1)
    low, high = spec.valid_range()
    assert (images >= low).all() and (images <= high).all()
    assert spec.to_pixels(images).mean() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(images, start(spec, teacher, start="procedural", start_candidates=1))
    assert not torch.equal(images, start(spec, teacher, seed=1, start="procedural", start_candidates=1))


def test_candidates_are_assigned_by_the_highest_sum_of_log_probabilities():
    logits = 3 * torch.randn(5, 3)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(5, 3, bias=False))
    teacher[1].weight.data = logits.T
    candidates, labels = torch.eye(5).view(5, 1, 1, 5), torch.tensor([2, 0, 0])
    chosen = best_candidates(teacher, candidates, labels)
    scores = logits.log_softmax(1)[:, labels]
    best = max(itertools.permutations(range(5), 3), key=lambda p: sum(scores[c, i] for i, c in enumerate(p)))
    assert scores[chosen, range(3)].sum() == pytest.approx(scores[list(best), range(3)].sum().item())
    assert len(set(chosen.tolist())) == 3


def test_a_choice_of_candidates_looks_more_like_the_labels(spec, teacher):
    def likelihood(count):
        with torch.no_grad():
            logits = teacher(start(spec, teacher, start="procedural", start_candidates=count))
        return logits.log_softmax(1)[torch.arange(10), LABELS].mean()

    assert likelihood(8) > likelihood(1)


def test_a_bank_from_pictures_is_closer_to_the_statistics_from_the_start(spec, tmp_path):
    teacher = CifarResNet(8, num_classes=10, in_channels=1, width=4)
    with torch.no_grad():  # a network that has seen pictures, not noise
        for seed in range(20):
            teacher.train()(torch.lerp(*spec.valid_range(), pictures(64, (1, 8, 8), 100 + seed)))
    first = {}
    for kind in ("noise", "procedural"):
        recipe = InversionRecipe(num_images=32, num_held_out=0, iterations=2, start=kind, feature_form="divergence")
        _, history = fill_bank(
            teacher.eval(), recipe, spec, 0, Workplace(tmp_path / kind, TrainerOptions(accelerator="cpu"))
        )
        first[kind] = history[0]["feature"]
    assert first["procedural"] < 0.5 * first["noise"]


def test_earlier_dreams_start_under_their_own_labels(spec, teacher):
    images = torch.arange(20.0)[:, None, None, None].expand(20, 1, 8, 8)
    earlier = Dreams(images.half(), LABELS.repeat(2), LABELS.repeat(2), torch.ones(20))
    numbers = start(spec, teacher, start="dreams", earlier=earlier)[:, 0, 0, 0]
    assert torch.equal(numbers % 10, LABELS.float())
    assert not torch.equal(numbers, start(spec, teacher, seed=1, start="dreams", earlier=earlier)[:, 0, 0, 0])


@pytest.mark.parametrize("kept", [0, 9])
def test_missing_earlier_dreams_are_an_error(spec, teacher, kept):
    earlier = Dreams(torch.zeros(kept, 1, 8, 8), LABELS[:kept], LABELS[:kept], torch.ones(kept)) if kept else None
    with pytest.raises(ConfigError, match="inversion.start is dreams, but no earlier dream"):
        start(spec, teacher, start="dreams", earlier=earlier)
