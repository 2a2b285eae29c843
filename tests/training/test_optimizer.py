"""Learning rates: their schedules, and those of batch norm."""

from __future__ import annotations

import pytest

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.errors import ConfigError
from dfkd.training.optimizer import learning_rate_factor, parameter_groups


def test_the_published_steps_fall_to_a_tenth_every_100_of_250_passes():
    factor = learning_rate_factor("step", 48750)
    points = {0: 1, 19499: 1, 19500: 0.1, 38999: 0.1, 39000: 0.01, 48749: 0.01}
    assert {step: factor(step) for step in points} == pytest.approx(points)


def test_a_warm_up_rises_to_the_whole():
    factor = learning_rate_factor("cosine", 20, warmup=4)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(20) == pytest.approx(0)


def test_scales_of_batch_norm_learn_faster_with_adamw_alone(teacher):
    for optimizer, changes, expected in (
        ("adamw", {}, {0.001, 0.01}),
        ("adamw", {"batch_norm_rate": None}, {0.001}),
        ("sgd", {}, {0.001}),
    ):
        settings = DistillationRecipe(optimizer=optimizer, learning_rate=0.001, **changes)
        groups = parameter_groups(teacher, settings)
        assert {group.get("lr", 0.001) for group in groups} == expected
        assert sum(len(group["params"]) for group in groups) == len(list(teacher.parameters()))
    with pytest.raises(ConfigError, match="distillation.batch_norm_rate must be above 0, or null"):
        DistillationRecipe(batch_norm_rate=0.0)
