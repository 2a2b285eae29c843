"""Procedural pictures: any shape, valid pixels, a function of their seed, and unlike noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.errors import ConfigError
from dfkd.procedural import FAMILIES, pictures
from dfkd.procedural.canvas import blended

EACH = pytest.mark.parametrize("family", FAMILIES)


@EACH
@given(count=st.integers(1, 9), channels=st.integers(1, 5), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_any_number_of_any_shape_are_valid_pixels(family, count, channels, height, width):
    found = pictures(count, (channels, height, width), 0, [family])
    assert found.shape == (count, channels, height, width) and found.dtype == torch.float32
    assert (found >= 0).all() and (found <= 1).all()


@EACH
def test_a_seed_gives_the_same_pictures_and_another_seed_others(family):
    first, again, other = (pictures(20, (3, 16, 16), seed, [family]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    assert torch.equal(pictures(20, (3, 16, 16), 0, [family]), first)  # the global generator is not asked


@EACH
def test_pictures_differ_from_each_other_and_use_the_range(family):
    found = pictures(64, (3, 32, 32), 0, [family])
    assert len(found.flatten(1).unique(dim=0)) == 64
    assert 0.4 < found.mean() < 0.6 and found.std() > 0.2
    assert found.std((2, 3)).gt(1e-3).any(1).float().mean() > 0.9  # hardly any is of a single colour


@EACH
def test_neighbouring_pixels_are_alike_unlike_those_of_noise(family):
    def roughness(images):
        return (images[..., 1:] - images[..., :-1]).square().mean() / (2 * images.var())

    noise = torch.rand(64, 3, 32, 32)
    assert roughness(pictures(64, (3, 32, 32), 0, [family])) < 0.5 * roughness(noise)


@EACH
def test_channels_go_together(family):
    red, green, _ = pictures(256, (3, 16, 16), 0, [family]).transpose(0, 1).flatten(1)
    assert torch.corrcoef(torch.stack([red, green]))[0, 1] > 0.4


def test_families_take_turns():
    names = ("spectra", "leaves")
    mixed = pictures(9, (1, 8, 8), 3, names)
    alone = pictures(9, (1, 8, 8), 3, ["spectra"])
    assert torch.equal(mixed[0::2], pictures(5, (1, 8, 8), 3, ["spectra"]))
    assert not torch.equal(mixed[1::2], alone[1::2])


@pytest.mark.parametrize("families", [[], ["clouds"]])
def test_an_unknown_family_is_refused(families):
    with pytest.raises(ConfigError, match="leaves"):
        pictures(1, (1, 8, 8), 0, families)


def test_a_palette_is_walked_around():
    colours = torch.tensor([[[0.0], [1.0]]])
    position = torch.tensor([[[0.0, 0.25, 0.5, 0.75, 1.0, -0.25]]])
    assert blended(colours, position).flatten().tolist() == [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
