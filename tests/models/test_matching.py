"""Weights are found in whatever public tools save: wrappers, averages, shared tensors, odd keys; or it is said why."""

from __future__ import annotations

import argparse
import copy
import json
import pathlib

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dfkd.errors import WeightsError
from dfkd.models import CifarResNet, batch_norm_layers, load_weights, torchvision_model
from dfkd.models.student_file import load_student, save_student
from dfkd.models.weights import load_teacher_weights, with_todays_keys


def fresh() -> nn.Module:
    model = CifarResNet(8, width=4)
    with torch.no_grad():
        for layer in batch_norm_layers(model).values():
            layer.running_mean.normal_()
    return model


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def loaded(content, path) -> nn.Module:
    torch.save(content, path / "weights.pt")
    model = fresh()
    load_weights(model, path / "weights.pt")
    return model


def same(model, other) -> bool:
    return all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def within(state, layer):
    """As if only a part of the network had been wrapped."""
    return {key.replace(f"{layer}.", f"{layer}.module."): value for key, value in state.items()}


WRAPPED = {
    "an odd key beside module.": lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(7)},
    "any prefix": lambda s: prefixed(s, "encoder.backbone.net."),
    "a LightningModule with a loss and metrics": lambda s: {
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(10), "accuracy.tp": torch.zeros(1)},
        "pytorch-lightning_version": "2.5", "hyper_parameters": AttributeDict(lr=0.1), "optimizer_states": [{}],
        "loops": {"state": {}}, "callbacks": {},
    },
    "a head of another task": lambda s: {**prefixed(s, "backbone."), "decoder.weight": torch.ones(3, 3)},
    "compiled within": lambda s: {key.replace("layer2.", "layer2._orig_mod."): value for key, value in s.items()},
    "parallel within": lambda s: within(s, "layer1"),
    "parallel within and without": lambda s: prefixed(within(s, "layer1"), "module."),
    "checkpointed and sharded within": lambda s: {
        f"_fsdp_wrapped_module.{key.replace('layer1.0.', 'layer1.0._checkpoint_wrapped_module.')}": value
        for key, value in s.items()
    },
    "counters of a profiler": lambda s: {**s, "total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
    "deep": lambda s: {"checkpoint": {"model": {"state_dict": prefixed(s, "module.")}}},
    "arguments and numbers": lambda s: {
        "model": s, "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("x")), "best": np.float64(0.9),
        "epoch": np.int64(3), "flags": np.bool_(True),
    },
    "an optimiser beside it": lambda s: {
        "state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "lr_scheduler": {"last": torch.zeros(1)}, "epoch": torch.tensor(3),
    },
    "single precision from double": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "keys of another tool": lambda s: {"params": s},
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_weights_are_found_whatever_is_around_them(case, tmp_path):
    source = fresh()
    assert same(loaded(WRAPPED[case](source.state_dict()), tmp_path), source)


def with_average(name):
    """How tools keep averaged weights `a` beside the last ones `s`."""
    return {
        "timm": lambda s, a: {"state_dict": s, "state_dict_ema": a, "arch": "net"},
        "torchvision": lambda s, a: {"model": s, "model_ema": {"n_averaged": torch.ones(1), **prefixed(a, "module.")}},
        "BasicSR": lambda s, a: {"params": s, "params_ema": a},
        "in a LightningModule": lambda s, a: {"state_dict": {**prefixed(s, "net."), **prefixed(a, "ema_net.module.")}},
        "beside bare keys": lambda s, a: {**s, **prefixed(a, "ema.")},
        "SWA": lambda s, a: {"model_state": s, "swa_state_dict": prefixed(a, "module.")},
        "parameters alone": lambda s, a: {
            "model": s, "ema": {"decay": 0.9, "shadow": {k: v for k, v in a.items() if k.endswith(("weight", "bias"))}},
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    ["timm", "torchvision", "BasicSR", "in a LightningModule", "beside bare keys", "SWA", "parameters alone"],
)
def test_averaged_weights_are_taken_and_it_is_said(case, tmp_path, caplog):
    last, averaged = fresh(), fresh()
    with caplog.at_level("INFO"):
        model = loaded(with_average(case)(last.state_dict(), averaged.state_dict()), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), averaged.parameters(), strict=True))
    statistics = last if case == "parameters alone" else averaged
    assert torch.equal(model.bn1.running_mean, statistics.bn1.running_mean)
    assert "averaged" in caplog.text


def test_the_weights_of_an_averaged_model_are_loaded(tmp_path):
    source = fresh()
    average = AveragedModel(source, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(source)
    assert same(loaded(average.state_dict(), tmp_path), source)


class Learns(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = fresh()

    def training_step(self, batch, _index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return DataLoader(torch.randn(16, 3, 8, 8), batch_size=4)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_checkpoint_with_averaged_weights_gives_those(tmp_path):
    module, averaging = Learns(), EMAWeightAveraging(decay=0.5)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, callbacks=[averaging], enable_checkpointing=False, **options)
    last = []
    averaging_end = averaging.on_train_end

    def on_train_end(trainer, module):
        trainer.save_checkpoint(tmp_path / "lightning.ckpt")
        last.append(copy.deepcopy(module.net))
        averaging_end(trainer, module)

    averaging.on_train_end = on_train_end
    trainer.fit(module)
    model = fresh()
    load_weights(model, tmp_path / "lightning.ckpt")
    assert same(model, module.net) and not same(model, last[0])


def test_several_networks_are_refused_and_equal_ones_are_not(tmp_path):
    one, other = fresh().state_dict(), fresh().state_dict()
    both = {"state_dict": {**prefixed(one, "student."), **prefixed(other, "teacher.")}}
    with pytest.raises(WeightsError, match=r"several networks with these keys: state_dict.student, state_dict.teacher"):
        loaded(both, tmp_path)
    loaded({"model": one, "state_dict": one}, tmp_path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_tensors_that_safetensors_left_out_are_the_shared_ones(tmp_path):
    source, target = Tied(), Tied()
    save_model(source, str(tmp_path / "noted.safetensors"))
    state = source.state_dict()
    del state["second.weight"]
    save_file(state, tmp_path / "plain.safetensors")
    for name in ("noted", "plain"):
        load_weights(target, tmp_path / f"{name}.safetensors")
        assert same(target, source) and target.second.weight is target.first.weight
    untied = Tied()
    untied.second.weight = nn.Parameter(torch.zeros(4, 4))
    load_weights(untied, tmp_path / "noted.safetensors")
    assert same(untied, source)
    with pytest.raises(WeightsError, match="missing: second.weight"):
        load_weights(untied, tmp_path / "plain.safetensors")


def test_different_weights_for_a_shared_tensor_are_refused(tmp_path):
    untied = Tied()
    untied.second.weight = nn.Parameter(torch.zeros(4, 4))
    torch.save(untied.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"shares one tensor between first.weight, second.weight"):
        load_weights(Tied(), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("value", "dtype"), [(torch.nan, None), (torch.inf, None), (-torch.inf, None), (1e39, torch.double)]
)
def test_values_that_are_not_finite_are_named(value, dtype, tmp_path):
    state = fresh().state_dict()
    if dtype is not None:  # finite in double precision, and not in the model's
        state["linear.bias"] = state["linear.bias"].to(dtype)
    state["linear.bias"][2] = value
    with pytest.raises(WeightsError, match=r"not finite \(NaN or infinite\): linear.bias\."):
        loaded(state, tmp_path)


def test_quantised_weights_are_named(tmp_path):
    state = fresh().state_dict()
    state["linear.weight"] = (state["linear.weight"] * 127).to(torch.int8)
    state["conv1.weight"] = state["conv1.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(WeightsError, match=r"quantised.*: conv1.weight \(torch.float8_e4m3fn\), linear.weight"):
        loaded(state, tmp_path)


def test_an_optimiser_alone_holds_no_weights(tmp_path):
    optimizer = torch.optim.Adam(fresh().parameters())
    with pytest.raises(WeightsError, match="holds no state dict"):
        loaded({"optimizer": optimizer.state_dict()}, tmp_path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        loaded(optimizer.state_dict(), tmp_path)


def test_another_network_is_told_by_its_keys(tmp_path):
    with pytest.raises(WeightsError, match=r"missing: .* not in the model: .*layer3.1.conv1.weight|not in the model"):
        loaded(CifarResNet(14, width=4).state_dict(), tmp_path)
    with pytest.raises(WeightsError, match=r"missing: conv1.weight"):
        loaded(nn.Linear(2, 2).state_dict(), tmp_path)


IMPOSTORS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n": "git lfs pull",
    b"\n  <!DOCTYPE html><html></html>": "a web page",
    b"<HTML><body>Sign in</body></HTML>": "a web page",
    b'<?xml version="1.0"?><Error>AccessDenied</Error>': "an XML message",
    b'{"error": "Not found"}': "JSON",
    json.dumps({"weight_map": {}}, indent=2).encode(): "JSON",
    b"\x89HDF\r\n\x1a\n0000": "Keras",
    b"": "it is empty",
}


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", IMPOSTORS)
def test_what_is_no_file_of_weights_is_named(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=IMPOSTORS[content]):
        load_weights(fresh(), tmp_path / name)


def test_the_kind_of_a_file_is_told_by_its_content(tmp_path, monkeypatch):
    source, target = fresh(), fresh()
    save_file(source.state_dict(), tmp_path / "weights.pt")
    load_weights(target, tmp_path / "weights.pt")
    assert same(target, source)
    with pytest.raises(WeightsError, match=r"is a folder. Give a file, perhaps one in it: weights.pt"):
        load_weights(target, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    load_weights(target, "~/weights.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:.*TorchScript.*")
def test_torchscript_and_whole_networks_are_refused_with_the_remedy(tmp_path):
    torch.jit.save(torch.jit.trace(fresh().eval(), torch.zeros(1, 3, 8, 8)), str(tmp_path / "script.pt"))
    with pytest.raises(WeightsError, match=r"TorchScript network.*torch.jit.load\(path\).state_dict\(\)"):
        load_weights(fresh(), tmp_path / "script.pt")
    torch.save(fresh(), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match=r"pickled objects besides tensors \(dfkd.models.cifar_resnet.CifarResNet\)"):
        load_weights(fresh(), tmp_path / "whole.pt")


def test_weights_of_a_network_that_was_never_trained_are_doubted(tmp_path, caplog):
    loaded(CifarResNet(8, width=4).state_dict(), tmp_path)
    assert "never trained" in caplog.text


def test_auxiliary_heads_are_left_out_where_the_network_has_none(tmp_path):
    whole = torchvision_model("googlenet", num_classes=10, aux_logits=True)
    torch.save(whole.state_dict(), tmp_path / "googlenet.pt")
    model = torchvision_model("googlenet", num_classes=10)
    load_weights(model, tmp_path / "googlenet.pt")
    assert torch.equal(model.fc.weight, whole.fc.weight)


def test_published_weights_that_want_another_input_are_refused():
    model = torchvision_model("googlenet", num_classes=1000)
    with pytest.raises(WeightsError, match=r"Set \+model.transform_input=true"):
        load_teacher_weights(model, "torchvision:DEFAULT", {"name": "googlenet"})


def test_networks_that_ask_for_the_version_of_their_weights_load_plain_ones(tmp_path):
    source, target = (torchvision_model("mnasnet0_5", num_classes=3) for _ in range(2))
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, tmp_path / "weights.safetensors")
    assert same(target, source)
    save_student(tmp_path / "student.safetensors", source)
    assert same(load_student(tmp_path / "student.safetensors", target), source)


def test_the_published_densenets_keys_are_todays(tmp_path):
    keys = [
        "features.denseblock1.denselayer2.norm.1.weight",
        "features.denseblock1.denselayer2.conv.2.weight",
        "x.norm.1",
    ]
    assert list(with_todays_keys(dict.fromkeys(keys, torch.zeros(1)))) == [
        "features.denseblock1.denselayer2.norm1.weight", "features.denseblock1.denselayer2.conv2.weight", "x.norm.1",
    ]  # fmt: skip
