"""Where a network that learned new classes falls short: in its classifier, within old and new classes, or between them.

    python benchmarks/new_class_features.py RUN [RUN ...]

Of every finished run of `task=class_incremental` in one step it takes the networks that the run has of `learn`,
`learning_without_forgetting` and `joint`, keeps their features, and fits a classifier anew on the real training images
of *all* classes, old ones too: logistic regression on standardised features, with a ridge of 1e-4. No learning without
the old images could end above that by a better classifier alone.
Of the networks as they are it tells how many images they get right where they are told whether the class is an old or
a new one (`told which`), and how well they tell that themselves: the AUC of logsumexp(old logits) - logsumexp(new
logits) (`old from new`). `with the teacher` is the AUC of the best linear combination of both logsumexps and the
teacher's, fitted to the test images themselves: an upper bound that no learning may use. `images as old` and `dreams
as old` are the shares of the old classes' test images, and of held-out dreams of these classes, that a network takes
for any old class: with joint training they tell whether dreams look like what they stand for.
Accuracy is of the run's test images; it is written to `benchmarks/new_class_features.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd import config
from dfkd.deployment.finished import finished_run
from dfkd.errors import ConfigError
from dfkd.evaluation.scores import accuracy, answers
from dfkd.files import write_json
from dfkd.models.classifier import classifier_of, features_and_logits
from dfkd.privacy.membership import auc
from dfkd.real_data import Purpose
from dfkd.reporting.run_directory import RESULT, product_of
from dfkd.stages.dreams import all_dreams
from dfkd.stages.networks import load
from dfkd.tasks.class_incremental import Step

OUT = Path(__file__).with_suffix(".json")
NETWORKS = ("learning_without_forgetting", "learn", "joint")
RIDGE, STEPS = 1e-4, 100


def fitted(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """The linear classifier of least cross-entropy on features (N, D), with a ridge on its weights."""
    layer = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(features), labels) + RIDGE * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer


def between(logits: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, float]:
    """What depends on telling old classes from new ones, of logits (N, old + new) and the teacher's (N, old)."""
    known = teacher.shape[1]
    old = labels < known
    halves = logits[:, :known], logits[:, known:]
    told = torch.where(old, halves[0].argmax(1), known + halves[1].argmax(1))
    sums = torch.stack([each.logsumexp(1) for each in (*halves, teacher)], 1)
    standardised = (sums - sums.mean(0)) / sums.std(0)
    best = fitted(standardised, old.long(), 2)
    with torch.no_grad():
        combined = best(standardised).diff(dim=1)[:, 0]
    margin = sums[:, 0] - sums[:, 1]
    return {
        "images as old": as_old(logits[old], known),
        "told which": accuracy(told, labels, logits.shape[1]),
        "old from new": round(auc(margin[old], margin[~old]), 4),
        "with the teacher": round(auc(combined[old], combined[~old]), 4),
    }


def as_old(logits: Tensor, known: int) -> float:
    """Share of logits (N, old + new) whose highest is one of the `known` old classes."""
    return round((logits.argmax(1) < known).double().mean().item(), 4)


def measured(run: Path) -> dict:
    """Accuracy of a run's networks, and of their features with a classifier that knows all images."""
    e = finished_run(run)
    if not e.incremental.new_classes or e.incremental.steps > 1:
        raise ConfigError(f"RUN must have learned new classes in one step (task=class_incremental), got {run}.")
    step, found = Step(e, 1), {}
    classes = sum(step.tasks)
    training = step.images(Purpose.REAL_DATA_CONTROL, 0, 1).open()
    tests = step.images(Purpose.EVALUATION, 0, 1).open()
    known_before, _ = answers(load(e.network, product_of(run, "teacher")).eval(), tests)
    held_out = all_dreams(product_of(run, "dream")).held_out.images.float()
    made = json.loads((run / RESULT).read_text(encoding="utf-8"))["scores"]
    for name in (name for name in NETWORKS if name in made):
        network = load(step.extended, product_of(run, name)).eval()
        layer, own = classifier_of(network, classes, e.spec.image_shape)

        def features(images: Tensor, network: nn.Module = network, layer: str = layer) -> Tensor:
            return features_and_logits(network, layer, images)[0]

        known, labels = answers(features, training)
        deviation, mean = torch.std_mean(known, 0)
        scale = 1 / deviation.clamp_min(1e-6)
        best = fitted((known - mean) * scale, labels, classes)
        seen, labels = answers(features, tests)
        with torch.no_grad():
            dreams_as_old = as_old(network(held_out), e.spec.num_classes)
            logits = {"own": own(seen), "of all images": best((seen - mean) * scale)}
        found[name] = {kind: accuracy(each.argmax(1), labels, classes) for kind, each in logits.items()}
        found[name] |= between(logits["own"], known_before, labels) | {"dreams as old": dreams_as_old}
        print(f"{run.name}: {name}: {found[name]}", flush=True)
    recipe = e.incremental
    settings = {
        "updates": recipe.updates,
        "logit_weight": recipe.logit_weight,
        "rotation_weight": recipe.rotation_weight,
    }
    return settings | {"seed": e.seed, "networks": found}


def main() -> None:
    """Measure some runs and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    config.register()
    write_json(OUT, {"rows": [measured(run) for run in parser.parse_args().runs]})


if __name__ == "__main__":
    main()
