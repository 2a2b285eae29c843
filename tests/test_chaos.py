"""`benchmarks/chaos.py`, smaller: a run that is killed at random moments ends as one that nobody disturbed."""

from __future__ import annotations

import random
import signal

from chaos import differences, disturbed, undisturbed
from conftest import TINY

OPTIONS = [*TINY, "controls=[noise]"]


def test_three_kills_at_random_moments_change_no_bit(tmp_path):
    whole = undisturbed(OPTIONS, tmp_path / "whole")
    left, hit = disturbed(OPTIONS, tmp_path / "killed", whole, 3, signal.SIGKILL, random.Random(0))
    assert sum(hit.values()) == 3
    assert sum(name.endswith(".safetensors") for name in whole.content) > 10 and "run/result.json" in whole.content
    assert not differences(whole.content, left)
