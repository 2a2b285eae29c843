"""Shares as text: few images are told as such."""

from __future__ import annotations

import pytest

from dfkd.reporting.percent import interval, percent


def test_a_share_of_few_images_is_told_with_its_interval():
    assert percent(None, 16) == "unknown" and percent(0.5) == percent(0.5, 100) == percent(0.5, 0) == "50.0 %"
    assert percent(0.5, 16) == "50.0 % (28 to 72)"
    assert percent(1.0, 16) == "100.0 % (81 to 100)" and percent(0.0, 8) == "0.0 % (0 to 32)"


def test_the_interval_is_wilsons():
    low, high = interval(0.8, 50)  # Wilson's for 40 of 50
    assert (low, high) == (pytest.approx(0.6696, abs=1e-4), pytest.approx(0.8876, abs=1e-4))
