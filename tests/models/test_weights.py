"""A user's weights: found in any usual wrapping, refused with the reason when they do not fit."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from dfkd.errors import WeightsError
from dfkd.models import CifarResNet, load_weights
from dfkd.models.weights import start_from


def fresh() -> CifarResNet:
    return CifarResNet(8, width=4)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: prefixed(s, "module."),
        lambda s: {"state_dict": s},
        lambda s: {"epoch": 3, "model": prefixed(s, "module._orig_mod.")},
        lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}},
        lambda s: {key: value for key, value in s.items() if "num_batches" not in key},
    ],
)
def test_usual_wrappings_load(tmp_path, wrap):
    source, target = fresh(), fresh()
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_safetensors_load(tmp_path):
    source, target = fresh(), fresh()
    save_file(prefixed(source.state_dict(), "module."), tmp_path / "weights.safetensors")
    load_weights(target, tmp_path / "weights.safetensors")
    assert torch.equal(source.linear.weight, target.linear.weight)


def test_keys_and_shapes_that_do_not_match_are_named(tmp_path):
    state = fresh().state_dict()
    del state["linear.bias"]
    state["head.bias"] = torch.zeros(10)
    state["conv1.weight"] = torch.zeros(4, 1, 3, 3)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(WeightsError) as error:
        load_weights(fresh(), tmp_path / "weights.pt")
    assert "missing: linear.bias" in str(error.value)
    assert "not in the model: head.bias" in str(error.value)
    assert "conv1.weight (file (4, 1, 3, 3), model (4, 3, 3, 3))" in str(error.value)


class Payload:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": fresh().state_dict(), "extra": Payload(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"could run code.*state_dict\(\)"):
        load_weights(fresh(), tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", pickle.dumps([1, 2])])
def test_unreadable_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="teacher.weights"):
        load_weights(fresh(), tmp_path / name)


def test_a_cut_file_and_a_missing_one_are_refused(tmp_path):
    torch.save(fresh().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    with pytest.raises(WeightsError, match="not a readable"):
        load_weights(fresh(), tmp_path / "cut.pt")
    with pytest.raises(WeightsError, match="there is no file"):
        load_weights(fresh(), tmp_path / "none.pt")


def test_a_start_brings_all_but_a_classifier_of_other_classes(tmp_path):
    source = CifarResNet(8, num_classes=7, width=4)
    torch.save(prefixed(source.state_dict(), "module."), tmp_path / "weights.pt")
    same, other = CifarResNet(8, num_classes=7, width=4), fresh()
    untouched = other.linear.weight.clone()
    start_from(same, str(tmp_path / "weights.pt"), {}, 7)
    start_from(other, str(tmp_path / "weights.pt"), {}, 10)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), same.parameters(), strict=True))
    assert torch.equal(source.layer3[0].conv1.weight, other.layer3[0].conv1.weight)
    assert torch.equal(other.linear.weight, untouched)


def test_a_start_of_another_width_is_refused(tmp_path):
    torch.save(CifarResNet(8, width=8).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="of another shape"):
        start_from(fresh(), str(tmp_path / "weights.pt"), {}, 10)
