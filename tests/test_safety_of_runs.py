"""What a run's configuration, folder and environment hold: no code in it is run, no secret told. See docs/safety.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, command
from payload import RAN

from dfkd import config
from dfkd.errors import ConfigError
from dfkd.models import CifarResNet
from dfkd.reporting.report import write_report
from dfkd.reporting.run_directory import product_of
from dfkd.run_config import load_run_config, remember

pytestmark = pytest.mark.usefixtures("nothing_runs")


@pytest.fixture
def edited(finished):
    """Changes the configuration of a finished run, a copy in `run`, and gives that folder."""
    shutil.copytree(finished / "run", "run")

    def edit(change) -> Path:
        written = yaml.safe_load(Path("run/config.yaml").read_text())
        change(written)
        Path("run/config.yaml").write_text(yaml.safe_dump(written))
        return Path("run")

    return edit


def target(group: str, name: str, **arguments):
    def change(written):
        written[group] = {"_target_": name, **arguments}

    return change


HOSTILE_TARGETS = {
    "a command": target("model", "os.mkdir", path=RAN),
    "a command by way of a module of ours": target("model", "dfkd.app.os.mkdir", path=RAN),
    "a function of ours that writes": target("model", "dfkd.files.write_text", path=RAN, text=""),
    "a function of torchvision's that unpacks": target("data", "torchvision.datasets.utils.extract_archive"),
    "a pruning": target("pruning", "shutil.rmtree", path="run"),
    "an interpolation": target("model", "${name}"),
    "a nested one": target("model", "dfkd.models.CifarResNet", depth={"_target_": "os.mkdir", "path": RAN}),
    "no text": target("model", ["os.mkdir"]),
}


@pytest.mark.parametrize("what", HOSTILE_TARGETS)
def test_code_that_a_runs_configuration_names_is_not_run(what, edited):
    run = edited(HOSTILE_TARGETS[what])
    with pytest.raises(ConfigError, match=r"config\.yaml.*(DFKD_TRUST=|was not looked up|configuration)"):
        config.read(run / "config.yaml")
    write_report([run], Path("report"))


@pytest.mark.parametrize("verb", ["export", "benchmark", "predict", "evaluate", "report"])
def test_no_command_runs_the_code_that_a_run_names(verb, edited, finished):
    run = edited(target("model", "os.mkdir", path=RAN))
    arguments = {
        "predict": ["run/student.safetensors", "run/dreams.png"],
        "evaluate": ["run/student.safetensors", "data=digits"],
    }.get(verb, [str(run)])
    store = ["--store", str(finished / "artifacts")] if verb in ("export", "benchmark") else []
    done = command([verb, *arguments, *store], Path.cwd(), check=False)
    assert "Traceback" not in done.stderr
    if verb == "report":
        assert done.returncode == 0 and "1 finished runs" in done.stdout
    else:
        assert done.returncode == 1 and "DFKD_TRUST=os dfkd ..." in done.stderr


def test_a_users_own_network_is_exported_where_its_package_is_trusted(edited, monkeypatch):
    run = edited(target("model", "mine.network", width=8))
    Path("mine.py").write_text(
        "from dfkd.models import CifarResNet\ndef network(width): return CifarResNet(8, in_channels=1, width=width)\n"
    )
    arguments = ["export", str(run), "--format", "pytorch"]
    refused = command(arguments, Path.cwd(), check=False)
    assert refused.returncode == 1 and "DFKD_TRUST=mine dfkd ..." in refused.stderr
    monkeypatch.setenv("DFKD_TRUST", "mine")
    command(arguments, Path.cwd(), environment={"DFKD_TRUST": "other, mine"})
    assert torch.load("run/student.pt", weights_only=True).keys() == CifarResNet(8, 10, 1, 8).state_dict().keys()


def test_what_a_users_own_run_wrote_is_trusted_until_somebody_changes_it(edited, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path_factory.mktemp("cache")))
    run = edited(target("model", "os.mkdir", path=RAN))
    remember(run / "config.yaml")
    assert config.read(run / "config.yaml").model.path == RAN
    with (run / "config.yaml").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ConfigError, match="DFKD_TRUST=os"):
        config.read(run / "config.yaml")


def test_a_run_with_a_network_of_ones_own_is_exported_without_a_word(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dfkd.models import CifarResNet\ndef network(width): return CifarResNet(8, in_channels=1, width=width)\n"
    )
    own = ["model=custom", "model._target_=mine.network", "+model.width=8", "controls=[]"]
    options = [option for option in TINY if not option.startswith(("model.", "+model."))]
    cache = {"DFKD_CACHE": str(tmp_path / "cache")}
    command([*options, *own, "run_dir=run"], tmp_path, environment=cache)
    command(["export", "run", "--format", "pytorch"], tmp_path, environment=cache)
    refused = command(["export", "run"], tmp_path, check=False, environment={"DFKD_CACHE": str(tmp_path / "other")})
    assert refused.returncode == 1 and "DFKD_TRUST=mine" in refused.stderr


HOSTILE_YAML = {
    "a tag that calls": "model: !!python/object/apply:os.mkdir [ran]",
    "a tag of an object": "model: !!python/object/new:os.mkdir [ran]",
    "a tag of its own": "model: !mine 3",
    "a billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "nested ten thousand times": "a: " + "[" * 10_000,
    "two megabytes": "a: " + "x" * 2**21,
    "a list": "- 1",
    "a secret of the environment": "store: ${oc.env:PLANTED}",
    "one in the middle": "store: a${oc.decode:${oc.env:PLANTED}}b",
    "one by a name that is put together": "store: ${oc.${x}:PLANTED}\nx: env",
    "bytes": "\0\1\2",
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_yaml_that_is_more_than_options_is_refused(what, finished, monkeypatch):
    monkeypatch.setenv("PLANTED", "planted-secret")
    shutil.copytree(finished / "run", "run")
    Path("run/config.yaml").write_text(HOSTILE_YAML[what])
    for read in (load_run_config, config.read, lambda path: product_of(path.parent, "dream")):
        with pytest.raises(ConfigError, match="config.yaml") as refused:
            read(Path("run/config.yaml"))
        assert "planted-secret" not in str(refused.value)
    assert "runs have no result" in write_report(["run"], Path("report"))


def test_the_configuration_of_a_real_run_is_read(finished):
    assert config.read(finished / "run" / "config.yaml").inversion.num_images == 48


def test_options_in_a_run_folder_that_are_not_those_of_its_seconds_are_not_taken(finished):
    options = [*TINY, f"store={finished / 'artifacts'}", "run_dir=run", "seconds=20", "stage=teacher"]
    command(options, Path.cwd())
    kept = json.loads(Path("run/within_seconds.json").read_text())
    hostile = {"model._target_": "os.mkdir", "model.path": RAN}
    Path("run/within_seconds.json").write_text(json.dumps(kept | {"options": kept["options"] | hostile}))
    command(options, Path.cwd())
    assert set(json.loads(Path("run/within_seconds.json").read_text())["options"]) == set(kept["options"])


def test_a_file_in_the_current_folder_is_not_taken_for_a_package():
    Path("onnxruntime.py").write_text(f"import os; os.mkdir({RAN!r})")
    Path("x.onnx").write_bytes(b"")
    done = subprocess.run(  # as the installed command does: nothing of the current folder comes first
        [sys.executable, "-P", "-c", "from dfkd.app import main; main()", "predict", "x.onnx", "x.png"],
        text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(Path(config.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 1 and "no ONNX file that onnxruntime runs" in done.stderr


LOGGERS = {"logger=wandb logger.offline=true": "*.wandb", "logger=tensorboard": "events.out.tfevents.*"}


@pytest.mark.parametrize("logger", LOGGERS)
def test_no_secret_is_in_any_file_of_a_run(logger, finished):
    """Neither wandb's key nor what an option takes from the environment; wandb runs offline."""
    planted = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "PLANTED": "planted-secret"}
    shutil.copytree(finished / "artifacts", "artifacts-planted-secret")
    options = [*TINY, *logger.split(), "run_dir=run", "store=artifacts-${oc.env:PLANTED}"]
    done = command(options, Path.cwd(), environment=planted)
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    logged = [path for path in files if path.match(LOGGERS[logger])]
    assert logged and Path("run/result.json") in files
    for secret in planted.values():
        assert secret not in done.stdout + done.stderr
        assert not [str(path) for path in files if secret.encode() in path.read_bytes()]
    assert any(b"${oc.env:PLANTED}" in path.read_bytes() for path in logged)
