"""Schedules of the learning rate."""

from __future__ import annotations

import pytest

from dfkd.training.optimizer import learning_rate_factor


def test_the_published_steps_fall_to_a_tenth_every_100_of_250_passes():
    factor = learning_rate_factor("step", 48750)
    points = {0: 1, 19499: 1, 19500: 0.1, 38999: 0.1, 39000: 0.01, 48749: 0.01}
    assert {step: factor(step) for step in points} == pytest.approx(points)


def test_a_warm_up_rises_to_the_whole():
    factor = learning_rate_factor("cosine", 20, warmup=4)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(20) == pytest.approx(0)
