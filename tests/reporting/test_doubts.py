"""What a result makes its reader doubt."""

from __future__ import annotations

import copy

import pytest

from dfkd.reporting.doubts import doubts

SOUND = {
    "teacher": {"accuracy": 0.9},
    "pruned": {"accuracy": 0.3, "agreement": 0.3},
    "distilled": {"accuracy": 0.8, "agreement": 0.9},
    "recovered": {"accuracy": 0.8, "agreement": 0.9},
    "controls": {"batchnorm": 0.6, "noise": 0.5, "procedural": 0.7, "real": 0.85},
    "controls_agreement": {"batchnorm": 0.6, "noise": 0.5, "procedural": 0.7, "real": 0.85},
    "choice": {"chosen": "distilled"},
    "dreams": {"teacher_accuracy": 0.97, "quality": {"without_real_images": {"statistics_agreement": 0.9}}},
}


def test_a_sound_result_leaves_none():
    assert doubts(SOUND) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("dreams", "teacher_accuracy"), 0.1, "sees 10.0 % of the dreams as their label. Raise inversion.restarts"),
        (("dreams", "quality", "without_real_images", "statistics_agreement"), 0.2, "the same on 20.0 % of them"),
        (("choice", "chosen"), "batchnorm", "than re-estimated batch norm alone, which is the result"),
        (("choice", "chosen"), "pruned", "than pruning alone, which is the result"),
        (("recovered", "accuracy"), 0.65, "(65.0 %) is below what it should beat: control: distilled on procedural"),
        (("pruned", "accuracy"), 0.85, "(80.0 %) is below what it should beat: pruned, untouched (85.0 %)"),
    ],
)
def test_each_failure_is_told_with_what_it_was(path, value, said):
    result = copy.deepcopy(SOUND)
    node = result
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    (found,) = doubts(result)
    assert said in found


def test_what_cannot_be_known_is_not_doubted():
    result = copy.deepcopy(SOUND)
    result["dreams"] = {"teacher_accuracy": None, "quality": {"without_real_images": {"statistics_agreement": None}}}
    for name in ("teacher", "pruned", "distilled", "recovered"):
        result[name]["accuracy"] = None
    result["controls"] = dict.fromkeys(result["controls"])
    assert doubts(result) == []
