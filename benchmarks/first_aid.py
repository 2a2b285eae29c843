"""What per-channel repair of a pruned network's variance adds to re-estimating its batch norm, without any training.

    python benchmarks/first_aid.py RUN [RUN ...]

Of every finished recovery by weight pruning it takes the pruned student and 512 of its dreams, from the run's store.
*Repaired* means: layer by layer in the order of the forward, each output channel of a convolution or linear layer is
scaled (ASR, arXiv 2605.21426), and shifted where it has a bias, to the variance and mean that the teacher's layer gives
these dreams. Batch norm is re-estimated before or after that, by the dreams' statistics as they are (`live`) or as what
they tell of the teacher's (`aligned`, the control of every run). Accuracy is of the run's test images; it is written to
`benchmarks/first_aid.json`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd import config, load_dreams
from dfkd.deployment.finished import finished_run
from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.evaluation.scores import accuracy, predict
from dfkd.files import write_json
from dfkd.real_data import Purpose
from dfkd.reporting.report import markdown
from dfkd.reporting.run_directory import product_of
from dfkd.stages.networks import load

OUT = Path(__file__).with_suffix(".json")
IMAGES, BATCH = 512, 256

Repair = Callable[[nn.Module], None]


@torch.no_grad()
def repair(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Give every output channel of the student's layers the mean and variance of the teacher's, in place."""
    expected: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _layer, _inputs, output: expected.update({name: output})

    def scale(name: str):
        def hook(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            space = [0, *range(2, output.dim())]
            (variance, mean), (own, at) = (torch.var_mean(x, space) for x in (expected[name], output))
            factor = (variance / own.clamp_min(1e-12)).sqrt()
            weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
            per_channel = [1, -1, *[1] * (output.dim() - 2)]
            if bias is None:
                return output * factor.view(per_channel)
            shift = mean - factor * at
            bias.mul_(factor).add_(shift)
            return output * factor.view(per_channel) + shift.view(per_channel)

        return hook

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(keep(n)) for n, m in teacher.named_modules() if isinstance(m, kinds)]
    hooks += [m.register_forward_hook(scale(n)) for n, m in student.named_modules() if isinstance(m, kinds)]
    teacher.eval()(images)
    for layer in student.eval().modules():
        layer.training = isinstance(layer, _BatchNorm)  # what follows a repaired layer has yet to be re-estimated
    student(images)
    for handle in hooks:
        handle.remove()


def measured(run: Path) -> dict:
    """Accuracy of the run's pruned student after each way of first aid, and what it took."""
    e = finished_run(run)
    dreams = load_dreams(run).training.images[:IMAGES].float()
    tests = e.images(Purpose.EVALUATION).open()
    teacher, pruned = load(e.network, product_of(run, "teacher")).eval(), load(e.student, product_of(run, "prune"))

    def reestimated(aligned: bool) -> Repair:
        return lambda student: reestimate_batch_norm(student, dreams.split(BATCH), teacher if aligned else None)

    def repaired(student: nn.Module) -> None:
        repair(student, teacher, dreams)

    ways: dict[str, list[Repair]] = {
        "pruned": [],
        "repaired": [repaired],
        "live": [reestimated(False)],
        "repaired, live": [repaired, reestimated(False)],
        "aligned": [reestimated(True)],
        "repaired, aligned": [repaired, reestimated(True)],
    }
    found = {}
    for name, steps in ways.items():
        student, begin = copy.deepcopy(pruned), time.process_time()
        for step in steps:
            step(student)
        seconds = time.process_time() - begin
        right = accuracy(*predict(student.eval(), tests, torch.device("cpu")), e.spec.num_classes)
        found[name] = {"accuracy": round(right, 4), "processor_seconds": round(seconds, 1)}
        print(f"amount {e.pruning.amount}: {name}: {100 * right:.1f} %, {seconds:.1f} s", flush=True)
    return {"model": type(teacher).__name__, "amount": e.pruning.amount, "seed": e.seed, "students": found}


def table(rows: list[dict]) -> str:
    """Accuracies in percent, a row for each pruned network."""
    table = []
    for row in rows:
        cells = {name: f"{100 * found['accuracy']:.1f}" for name, found in row["students"].items()}
        table.append({"pruned by": f"{100 * row['amount']:.0f} %: {cells.pop('pruned')}", **cells})
    return markdown(pd.DataFrame(table))


def main() -> None:
    """Measure the pruned students of some runs and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    config.register()
    rows = [measured(run) for run in parser.parse_args().runs]
    write_json(OUT, {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
