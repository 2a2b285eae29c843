"""What `dfkd` and `dfkd --help` say."""

from __future__ import annotations

import textwrap
from importlib.resources import files

from dfkd import config
from dfkd.tasks import TASKS

COMMANDS = """\
dfkd gives a pruned network its accuracy back, without its data.

Run
  dfkd experiment=demo             the whole job in miniature: minutes on a CPU, nothing to download
  dfkd experiment=custom OPTIONS   your own network: model._target_, teacher.weights, input.*, pruning.amount
  dfkd -m OPTIONS seed=0,1,2       a sweep: one run for each combination of values with commas
  The same command again continues a run that was stopped, to the same bits.

Before a run
  dfkd plan OPTIONS                what every stage would take here, in time and memory

After it
  dfkd report DIR...               tables, plots and a page of all runs under some folders
  dfkd export RUN                  the student as ONNX (float and int8) and PyTorch
  dfkd benchmark RUN               size and speed of teacher and student on this machine
  dfkd audit RUN...                whether its dreams are nearer to training images than to test images
  dfkd predict FILE IMAGES...      what an exported student sees in images
  dfkd evaluate FILE data=NAME     its accuracy on test images
  dfkd store                       what the store of teachers, dreams and students holds

dfkd COMMAND --help explains a command, dfkd --help the options of a run.
"""

OPTIONS = {
    "experiment": "a file of options to begin with; what stands beside it on the command line wins",
    "model": "the teacher's network; custom: your own class or function, model._target_=my_package.MyNetwork",
    "teacher": "whether its weights are given (teacher.weights=FILE) or it is trained first",
    "data": "test images to score on, training images for the control and for teachers that are trained; none: no data",
    "pruning": "what is removed, with pruning.amount=0.75 how much of it",
    "quantization": "in how many bits the student computes, and learns",
    "inversion": "how dreams are made; inversion.num_images=2048 how many",
    "distillation": "how the student learns from them; distillation.updates=3200 how long",
    "logger": "where curves go beside the run's own files",
}
SETTINGS = {
    "task": f"one of {', '.join(TASKS)}",
    "stage": f"the last part of the run: {', '.join(TASKS['recovery'].parts)} (of a recovery)",
    "seconds": "as many dreams and updates as there is time for",
    "seed": "of everything random",
    "run_dir": "where the run's files go (default: runs/EXPERIMENT/HASH)",
    "store": "where stages are kept and found again (default: artifacts, or $DFKD_STORE)",
    "trainer": "trainer.accelerator=cpu, trainer.precision=bf16-mixed, ...",
}


def overview() -> str:
    """The commands, by when they are needed."""
    return COMMANDS


def full_help() -> str:
    """The commands, and what the options of a run are for, with the choices of each group."""
    groups = [
        _entry(f"{name}=", f"{meaning}. Choices: {', '.join(choices(name))}") for name, meaning in OPTIONS.items()
    ]
    settings = [_entry(f"{name}=", meaning) for name, meaning in SETTINGS.items()]
    return "\n".join([
        COMMANDS.rsplit("\n\n", 1)[0], "", "Options of a run: KEY=VALUE, in any order", *groups, *settings, "",
        'Quote what the shell would take for its own: "input.mean=[0.5,0.5,0.5]".',
        "dfkd OPTIONS --cfg job prints every option with its value; dfkd --hydra-help explains Hydra's own flags.",
        "",
    ])  # fmt: skip


def choices(group: str) -> list[str]:
    """What can be chosen in a group of the configuration."""
    shipped = [path.name.removesuffix(".yaml") for path in files("dfkd.conf").joinpath(group).iterdir()]
    named = list(config.named_models()) if group == "model" else []
    return sorted(name for name in (*shipped, *named) if not name.startswith("__"))


def _entry(name: str, meaning: str) -> str:
    return textwrap.fill(meaning, 100, initial_indent=f"  {name:<15}", subsequent_indent=" " * 17)
