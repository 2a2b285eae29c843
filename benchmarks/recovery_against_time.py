"""How much inversion a student needs: accuracy after recovery against iterations per batch, at equal numbers of dreams.

    python benchmarks/recovery_against_time.py --teacher resnet20.safetensors --data cifar10-jpeg --out runs/curve \
        --points default:75,default:150,paper:2000 --seeds 0

A point is `SETTING:ITERATIONS`, all from noise: `default` is `deepinversion_noise` (cosine from 0.3, Adam's betas 0.8
and 0.99), `usual_betas` the same with Adam's usual 0.9 and 0.999 and the rate that suits them, `paper` the published
one (0.05, constant). Each seed dreams one batch of 256 images and recovers the pruned ResNet-20 on it, at every
sparsity.
The teacher, the updates and the seeds are the same at every point. Scores are added to `points.json` in the folder;
batches and scores found there are kept. Test images score and decide nothing: settings were chosen by `dev`, the
accuracy on 3,000 of the images that the *teacher* was trained on.

    python benchmarks/recovery_against_time.py --page benchmarks/recovery_against_time.json docs

writes the table and the plot of recorded points into the docs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure
from published import PUBLISHED
from torch.utils.data import Subset

import dfkd
from dfkd.distillation import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule
from dfkd.evaluation.scores import accuracy, predict
from dfkd.files import write_json, write_text
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.models import CifarResNet, InputSpec, load_weights
from dfkd.real_data import Purpose, image_folder
from dfkd.real_data.datamodule import random_subset
from dfkd.reporting.figures import save_figure
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace

SPEC = InputSpec((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SETTINGS = {
    "default": {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.99},
    "usual_betas": {"learning_rate": 0.2},
    "paper": {
        "learning_rate": 0.05,
        "schedule": "constant",
        "l2_weight": 3e-8,
        "clip": False,
    },
}


def main() -> None:
    """Measure every point that is not in the folder yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", default="default:150,paper:2000")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sparsities", default="0.75,0.9")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--accelerator", default="cpu")
    arguments = parser.parse_args()
    options = TrainerOptions(accelerator=arguments.accelerator)
    teacher = CifarResNet(20)
    load_weights(teacher, arguments.teacher)
    images = image_folder(SPEC, arguments.data)
    scored = {
        "dev": random_subset(images.open(Purpose.REAL_DATA_CONTROL), 3000, seed=0),
        "test": images.open(Purpose.EVALUATION),
    }
    for seed in map(int, arguments.seeds.split(",")):
        for point in arguments.points.split(","):
            setting, iterations = point.split(":")
            changes = {"iterations": int(iterations), "flip": True, **PUBLISHED, **SETTINGS[setting]}
            recipe = InversionRecipe(num_images=256, num_held_out=0, batch_size=256, **changes)
            bank = arguments.out / f"{setting}-{iterations}-seed{seed}"
            bank.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            dreams, history = fill_bank(teacher, recipe, SPEC, seed, Workplace(bank, options))
            seconds = round(time.monotonic() - started, 1)
            for sparsity in map(float, arguments.sparsities.split(",")):
                key = {"setting": setting, "iterations": int(iterations), "seed": seed, "sparsity": sparsity,
                       "updates": arguments.updates}  # fmt: skip
                if any(row.items() >= key.items() for row in _rows(arguments.out)):
                    continue
                student = _recovered(teacher, dreams, sparsity, arguments.updates, seed, options)
                row = {**key, "seconds_to_fill_or_read": seconds, "loss": round(history[-1]["total"], 2)}
                for name, dataset in scored.items():
                    row[name] = _accuracy(student, dataset, options)
                print(json.dumps(row), flush=True)
                write_json(arguments.out / "points.json", {"rows": [*_rows(arguments.out), row]})


def _recovered(teacher, dreams, sparsity: float, updates: int, seed: int, options: TrainerOptions):
    student = dfkd.prune(teacher, sparsity)
    # Spelled out, because the points on record were taken with these values.
    recipe = DistillationRecipe(
        updates=updates, batch_norm="live", optimizer="sgd", learning_rate=0.1, warmup_updates=0,
        feature_weight=1.0, mixup=0.0, crop_padding=4, flip=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        data = DreamDataModule(dreams, Stream(recipe.batch_size, updates, seed))
        recover_student(student, teacher, data, recipe, Workplace(Path(directory), options))
    return student


def _accuracy(model, dataset: Subset, options: TrainerOptions) -> float:
    return accuracy(*predict(model, dataset, options.torch_device()), SPEC.num_classes)


def page(points: list[dict]) -> str:
    """Points as a page in Markdown: accuracy in percent, mean and standard deviation (n - 1) over seeds."""
    lines = [
        "# Recovery against iterations of inversion",
        "",
        "Written by `benchmarks/recovery_against_time.py`. ResNet-20 on CIFAR-10 (JPEG), two CPU cores; one batch of",
        "256 dreams and 100 updates per student, so the accuracies are below those of a full recovery. `paper` is the",
        "published setting. Settings were chosen by `dev` (3,000 of the teacher's training images), never by test",
        "images.",
        "",
        "| setting | iterations | sparsity | seeds | test accuracy | dev accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for (setting, iterations, sparsity), rows in _grouped(points).items():
        cells = [setting, iterations, f"{sparsity:.0%}", len(rows), *(_spread(rows, name) for name in ("test", "dev"))]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n\n![Accuracy after recovery](images/recovery_against_time.png)\n"


def plot(points: list[dict]) -> Figure:
    """Test accuracy after recovery against iterations, one line per sparsity and setting, every seed a point."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for sparsity, colour in ((0.75, "#1b7837"), (0.9, "#762a83")):
        for setting, marker in (("default", "o"), ("usual_betas", "x"), ("paper", "s")):
            chosen = {key: rows for key, rows in _grouped(points).items() if key[0] == setting and key[2] == sparsity}
            means = [100 * statistics.mean(row["test"] for row in rows) for rows in chosen.values()]
            axes.plot([key[1] for key in chosen], means, color=colour, linewidth=1)
            for key, rows in chosen.items():
                axes.plot([key[1]] * len(rows), [100 * row["test"] for row in rows], marker, color=colour, alpha=0.6)
            axes.plot([], [], marker, color=colour, label=f"{setting}, {sparsity:.0%} sparsity")
    axes.set(xscale="log", xlabel="iterations of inversion", ylabel="test accuracy after recovery (%)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _grouped(points: list[dict]) -> dict[tuple[str, int, float], list[dict]]:
    groups: dict[tuple[str, int, float], list[dict]] = {}
    for row in sorted(points, key=lambda row: (row["sparsity"], row["setting"], row["iterations"], row["seed"])):
        groups.setdefault((row["setting"], row["iterations"], row["sparsity"]), []).append(row)
    return groups


def _spread(rows: list[dict], name: str) -> str:
    values = [100 * row[name] for row in rows]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _rows(out: Path) -> list[dict]:
    path = out / "points.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


if __name__ == "__main__":
    if sys.argv[1:2] == ["--page"]:
        recorded, docs = json.loads(Path(sys.argv[2]).read_text())["rows"], Path(sys.argv[3])
        write_text(docs / "recovery_against_time.md", page(recorded))
        save_figure(plot(recorded), docs / "images" / "recovery_against_time.png")
    else:
        main()
